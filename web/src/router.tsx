// Which page stands at which address.

import { createRootRoute, createRoute, createRouter, Link } from "@tanstack/react-router";
import { Shell } from "./shell";
import { Bin } from "./views/Bin";
import { Cluster } from "./views/Cluster";
import { Events } from "./views/Events";
import { Images } from "./views/Images";
import { Operations } from "./views/Operations";
import { Sessions } from "./views/Sessions";
import { VmList } from "./views/VmList";

const root = createRootRoute({
  component: Shell,
  notFoundComponent: () => (
    <>
      <h1>There is no such page</h1>
      <p>
        <Link to="/">To the cluster</Link>
      </p>
    </>
  ),
});

const at = <Path extends string>(path: Path, component: () => React.ReactNode) =>
  createRoute({ getParentRoute: () => root, path, component });

/** What the list of machines is narrowed to; kept in the address, so that it can be passed on. */
export interface ListSearch {
  find?: string;
  phase?: string;
  node?: string;
  tag?: string;
}

const text = (given: unknown): string | undefined =>
  typeof given === "string" && given !== "" ? given : undefined;

export const vmsRoute = createRoute({
  getParentRoute: () => root,
  path: "/vms",
  component: VmList,
  validateSearch: (given: Record<string, unknown>): ListSearch => ({
    find: text(given.find),
    phase: text(given.phase),
    node: text(given.node),
    tag: text(given.tag),
  }),
});

export const vmRoute = createRoute({ getParentRoute: () => root, path: "/vms/$vm" }).lazy(() =>
  import("./views/VmDetail").then((page) => page.route),
);

const newRoute = createRoute({ getParentRoute: () => root, path: "/new" }).lazy(() =>
  import("./views/CreateVm").then((page) => page.route),
);

const startRoute = createRoute({ getParentRoute: () => root, path: "/start" }).lazy(() =>
  import("./views/Start").then((page) => page.route),
);

const setupRoute = createRoute({ getParentRoute: () => root, path: "/setup" }).lazy(() =>
  import("./views/setup/Setup").then((page) => page.route),
);

const validationRoute = createRoute({ getParentRoute: () => root, path: "/validation" }).lazy(() =>
  import("./views/Validation").then((page) => page.route),
);

const mapRoute = createRoute({
  getParentRoute: () => root,
  path: "/map",
  validateSearch: (given: Record<string, unknown>): { node?: string } => ({ node: text(given.node) }),
}).lazy(() => import("./views/Fleet").then((page) => page.route));

export const tree = root.addChildren([
  at("/", Cluster),
  vmsRoute,
  vmRoute,
  newRoute,
  startRoute,
  mapRoute,
  setupRoute,
  validationRoute,
  at("/bin", Bin),
  at("/images", Images),
  at("/operations", Operations),
  at("/events", Events),
  at("/sessions", Sessions),
  // Whoever is signed in is shown the cluster there.
  at("/sign-in", Cluster),
]);

export const router = createRouter({ routeTree: tree, defaultPreload: false });

declare module "@tanstack/react-router" {
  interface Register {
    router: typeof router;
  }
}
