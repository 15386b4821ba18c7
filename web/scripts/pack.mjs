// Before `vite build` (--clear): removes what earlier builds left. After it: puts compressed files
// beside the others, and holds the first load to its limit.
import { readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { brotliCompressSync, constants } from "node:zlib";

/** Licences that ask for no more than a notice, as for crates. */
const LICENCES = new Set(["0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "Unlicense", "Zlib"]);

/**
 * Libraries under a licence that also asks where the source of their unchanged files is, and the answer,
 * which stands in the notices.
 */
const SOURCES = { "@novnc/novnc": { licence: "MPL-2.0", from: "https://github.com/novnc/noVNC" } };

/** Most bytes, compressed, that a browser loads before it shows the first page. */
const FIRST_LOAD_BYTES_MAX = 350 * 1000;

const dist = new URL("../dist/", import.meta.url).pathname;

if (process.argv.includes("--clear")) {
  for (const name of readdirSync(dist)) {
    if (name !== ".gitignore") rmSync(join(dist, name), { recursive: true });
  }
  process.exit(0);
}

notices();

const index = readFileSync(join(dist, "index.html"), "utf8");
// Everything that the page names: Vite lists what those files import, too.
const first = new Set([...index.matchAll(/(?:src|href)="\/([^"]+)"/g)].map((match) => match[1]));
first.add("index.html");

let loaded = 0;
const files = readdirSync(dist, { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile() && entry.name !== ".gitignore")
  .map((entry) => join(entry.parentPath, entry.name).slice(dist.length));
for (const file of files.sort()) {
  const bytes = readFileSync(join(dist, file));
  const params = {
    [constants.BROTLI_PARAM_QUALITY]: 11,
    [constants.BROTLI_PARAM_SIZE_HINT]: bytes.length,
  };
  const packed = brotliCompressSync(bytes, { params });
  if (packed.length < bytes.length) writeFileSync(join(dist, `${file}.br`), packed);
  const size = Math.min(packed.length, bytes.length);
  if (first.has(file)) loaded += size;
  const when = first.has(file) ? "at once" : "later";
  console.log(`${file}: ${bytes.length} bytes, ${size} compressed, loaded ${when}`);
}
console.log(`first load: ${loaded} bytes compressed, at most ${FIRST_LOAD_BYTES_MAX}`);
if (loaded > FIRST_LOAD_BYTES_MAX) {
  console.error("error: the first load is too large; load what is not on the first page later");
  process.exit(1);
}

/** Writes the notices of all libraries that go out with the pages; refuses a licence that asks for more. */
function notices() {
  const web = new URL("../", import.meta.url).pathname;
  const { packages } = JSON.parse(readFileSync(join(web, "package-lock.json"), "utf8"));
  const shipped = Object.entries(packages).filter(([path, about]) => path !== "" && !about.dev);
  const texts = shipped.map(([path]) => {
    const folder = join(web, path);
    const { name, version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const source = SOURCES[name]?.licence === license ? SOURCES[name].from : null;
    if (!LICENCES.has(license) && !source) {
      console.error(`error: ${name} has the licence ${license}, which is not on the list`);
      process.exit(1);
    }
    const file = readdirSync(folder).find((file) => /^licen[cs]e/i.test(file));
    const text = file ? readFileSync(join(folder, file), "utf8").trim() : "(no text of its own)";
    const where = source ? ` (unchanged; source: ${source}, tag v${version})` : "";
    return `${name} ${version}: ${license}${where}\n\n${text}\n`;
  });
  writeFileSync(join(dist, "licences.txt"), texts.join(`\n${"-".repeat(80)}\n\n`));
  console.log(`licences.txt: ${texts.length} libraries`);
}
