// The browser's story, against a real daemon that `tests/e2e/tests/web.rs` starts.

import { defineConfig } from "@playwright/test";

export default defineConfig({
  testDir: "browser",
  // One story, told in order; nothing is tried again until it passes.
  workers: 1,
  fullyParallel: false,
  retries: 0,
  timeout: 120_000,
  expect: { timeout: 30_000 },
  reporter: "line",
  outputDir: "../target/browser",
  use: {
    baseURL: process.env.MUSTER_WEB_URL ?? "https://127.0.0.1:7443",
    // The node's certificate is its own; a person compares the fingerprint.
    ignoreHTTPSErrors: true,
    viewport: { width: 1280, height: 800 },
    locale: "en-GB",
    screenshot: "only-on-failure",
    launchOptions: {
      executablePath: process.env.MUSTER_CHROMIUM ?? "/usr/bin/chromium",
      // Tests run as root, where the browser's own sandbox cannot.
      args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
    },
  },
});
