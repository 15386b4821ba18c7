// Who is signed in, for all pages.

import { createContext, useContext } from "react";
import type { Schemas } from "./api/client";

export const Me = createContext<Schemas["WhoAmIView"] | null>(null);

export function useMe(): Schemas["WhoAmIView"] | null {
  return useContext(Me);
}

export function useRole(): Schemas["Role"] | undefined {
  return useMe()?.role;
}
