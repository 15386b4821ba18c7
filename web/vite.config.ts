/// <reference types="vitest/config" />
import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

export default defineConfig({
  plugins: [react()],
  build: {
    target: "es2022",
    sourcemap: false,
    // The folder has a committed file that keeps it there; scripts/pack.mjs empties the rest.
    emptyOutDir: false,
    // Fonts and pictures as files: the policy of the pages allows no others.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  test: {
    environment: "jsdom",
    include: ["{src,mock}/**/*.test.{ts,tsx}"],
    setupFiles: ["src/testing.ts"],
    restoreMocks: true,
    // On a machine that builds other things at the same time.
    testTimeout: 60_000,
  },
});
