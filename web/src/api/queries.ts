// What is asked of the API, each with its key: the event stream names keys when things change.

import { queryOptions } from "@tanstack/react-query";
import { api, known, value } from "./client";

/** Figures that change without an event (use of processors, free memory), in milliseconds. */
const FIGURES_MS = 10_000;

/** Operations under way, in milliseconds: their progress is no event. */
const PROGRESS_MS = 2_000;

/** Events that a page starts with. */
export const EVENTS_FIRST = 200;

export const keys = {
  me: ["me"] as const,
  vms: ["vms"] as const,
  vm: (id: string) => ["vm", id] as const,
  ops: ["ops"] as const,
  events: ["events"] as const,
  nodes: ["nodes"] as const,
  cluster: ["cluster"] as const,
  capacity: ["capacity"] as const,
  volumes: ["volumes"] as const,
  networks: ["networks"] as const,
  images: ["images"] as const,
  sessions: ["sessions"] as const,
  rules: ["rules"] as const,
  validation: ["validation"] as const,
  disks: ["disks"] as const,
};

export const me = queryOptions({
  queryKey: keys.me,
  queryFn: () => value(api.GET("/v1/whoami")),
  staleTime: Infinity,
  retry: false,
});

export const vms = queryOptions({
  queryKey: keys.vms,
  queryFn: () => known((query) => api.GET("/v1/vms", { params: { query: { deleted: false, ...query } } })),
  refetchInterval: FIGURES_MS,
});

export const vm = (id: string) =>
  queryOptions({
    queryKey: keys.vm(id),
    queryFn: () => known((query) => api.GET("/v1/vms/{vm}", { params: { path: { vm: id }, query } })),
    refetchInterval: FIGURES_MS,
  });

export const ops = queryOptions({
  queryKey: keys.ops,
  queryFn: () => known((query) => api.GET("/v1/ops", { params: { query: { all: false, ...query } } })),
  // Asked again only while something is under way.
  refetchInterval: (query) => ((query.state.data?.length ?? 0) > 0 ? PROGRESS_MS : false),
});

export const events = queryOptions({
  queryKey: keys.events,
  queryFn: () => known((query) => api.GET("/v1/events", { params: { query: { limit: EVENTS_FIRST, ...query } } })),
  staleTime: Infinity,
});

export const nodes = queryOptions({
  queryKey: keys.nodes,
  queryFn: () => known((query) => api.GET("/v1/nodes", { params: { query } })),
  refetchInterval: FIGURES_MS,
});

export const cluster = queryOptions({
  queryKey: keys.cluster,
  queryFn: () => value(api.GET("/v1/cluster")),
  refetchInterval: FIGURES_MS,
});

export const capacity = queryOptions({
  queryKey: keys.capacity,
  queryFn: () => known((query) => api.GET("/v1/capacity", { params: { query } })),
});

export const volumes = queryOptions({
  queryKey: keys.volumes,
  queryFn: () => known((query) => api.GET("/v1/volumes", { params: { query } })),
});

export const networks = queryOptions({
  queryKey: keys.networks,
  queryFn: () => known((query) => api.GET("/v1/networks", { params: { query } })),
});

export const images = queryOptions({
  queryKey: keys.images,
  queryFn: () => known((query) => api.GET("/v1/images", { params: { query } })),
});

export const sessions = queryOptions({
  queryKey: keys.sessions,
  queryFn: () => known((query) => api.GET("/v1/sessions", { params: { query } })),
});
