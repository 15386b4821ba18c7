// Where a witness is.

import type { Schemas } from "../../api/client";

/** In a word or two. */
export function where(place: Schemas["WitnessPlaceView"]): string {
  return place.kind === "object" ? place.url : place.kind === "remote" ? place.address : place.path;
}
