import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { RouterProvider } from "@tanstack/react-router";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { Failure } from "./api/client";
import { keys } from "./api/queries";
import { router } from "./router";
import "./style.css";

const client = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 5_000,
      // What the browser takes for "offline" says nothing of the way to this node.
      networkMode: "always",
      // One more try for what failed by chance; what was refused stays refused.
      retry: (times, error) => times < 1 && Failure.of(error).status === 0,
      refetchOnWindowFocus: false,
    },
  },
});

// Any answer may be the first to say that the session has ended.
client.getQueryCache().subscribe((event) => {
  if (event.type !== "updated" || event.action.type !== "error") return;
  const ended = Failure.of(event.action.error).signedOut && event.query.queryKey[0] !== keys.me[0];
  if (ended) void client.resetQueries({ queryKey: keys.me });
});

createRoot(document.getElementById("root") as HTMLElement).render(
  <StrictMode>
    <QueryClientProvider client={client}>
      <RouterProvider router={router} />
    </QueryClientProvider>
  </StrictMode>,
);
