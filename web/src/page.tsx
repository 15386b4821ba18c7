// Part of a page for tests, with what every page has around it.

import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { render } from "@testing-library/react";
import type { ReactNode } from "react";
import type { Schemas } from "./api/client";
import { NoticesProvider } from "./parts/notices";
import { Me } from "./session";

export function page(children: ReactNode, role: Schemas["Role"] = "administrator") {
  const client = new QueryClient({ defaultOptions: { queries: { retry: false } } });
  return render(
    <QueryClientProvider client={client}>
      <Me value={{ actor: "user root", role }}>
        <NoticesProvider>{children}</NoticesProvider>
      </Me>
    </QueryClientProvider>,
  );
}
