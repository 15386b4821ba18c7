/// <reference types="vitest/config" />
import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// `MUSTER_DEV` names a daemon's TLS port to develop against: npm run dev.
const daemon = process.env.MUSTER_DEV;

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
  server: daemon ? { proxy: { "/v1": { target: daemon, secure: false, ws: true } } } : {},
  test: {
    environment: "jsdom",
    include: ["src/**/*.test.{ts,tsx}"],
    setupFiles: ["src/testing.ts"],
    restoreMocks: true,
  },
});
