// Before `vite build` (--clear): removes what earlier builds left. After it: puts compressed files
// beside the others, and holds the first load to its limit.
import { readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { brotliCompressSync, constants } from "node:zlib";

/** Most bytes, compressed, that a browser loads before it shows the first page. */
const FIRST_LOAD_BYTES_MAX = 350 * 1000;

const dist = new URL("../dist/", import.meta.url).pathname;

if (process.argv.includes("--clear")) {
  for (const name of readdirSync(dist)) {
    if (name !== ".gitignore") rmSync(join(dist, name), { recursive: true });
  }
  process.exit(0);
}

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
