// For all component tests: the page is empty before each, and no request goes anywhere.

import { cleanup, configure } from "@testing-library/react";
import { afterEach, beforeEach, vi } from "vitest";

// A deadline, not a pause: what comes at once is seen at once.
configure({ asyncUtilTimeout: 20_000 });

// The simulated browser lacks it; names in tests need no escaping.
vi.stubGlobal("CSS", { escape: (name: string) => name, supports: () => false });

beforeEach(() => {
  vi.stubGlobal("fetch", (request: Request | string) => {
    const address = typeof request === "string" ? request : request.url;
    return Promise.reject(new Error(`no answer was prepared for ${address}`));
  });
});
afterEach(() => cleanup());
