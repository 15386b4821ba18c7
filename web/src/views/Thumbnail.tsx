// A small picture of a machine's screen; nothing where there is none.

import { useQuery } from "@tanstack/react-query";
import { thumbnail } from "./thumbnail";

export function Thumbnail({ vm, name, again }: {
  vm: string;
  name: string;
  /** How often it is taken, in milliseconds. */
  again: number;
}) {
  const { data } = useQuery(thumbnail(vm, again));
  if (!data) return <span className="thumbnail" aria-hidden="true" />;
  return <img className="thumbnail" src={data} alt={`Screen of ${name}`} />;
}
