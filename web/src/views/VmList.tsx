// All machines: search, filters, tags, and what can be done to those that are chosen.

import { useQuery } from "@tanstack/react-query";
import { Link, getRouteApi, useRouter } from "@tanstack/react-router";
import { useDeferredValue, useEffect, useMemo, useRef, useState } from "react";
import { vms } from "../api/queries";
import { mayDo } from "../parts/format";
import { Button, Trouble, Waiting } from "../parts/parts";
import type { ListSearch } from "../router";
import { useRole } from "../session";
import { ActionBar } from "./ActionBar";
import { choices, narrowed, type Order, ordered } from "./filter";
import { VmTable } from "./VmTable";

const route = getRouteApi("/vms");

/** Up to so many machines their screens are shown without being asked for. */
const SCREENS_MAX = 12;

/** How long the typing rests before the address says what is searched for, in milliseconds. */
const ADDRESS_FOLLOWS_MS = 400;

export function VmList() {
  const all = useQuery(vms);
  const search = route.useSearch();
  const navigate = route.useNavigate();
  const role = useRole();
  const [find, setFind] = useState(search.find ?? "");
  const [order, setOrder] = useState<Order>({ by: "name", down: false });
  const [chosen, setChosen] = useState<Set<string>>(new Set());
  const [wanted, setWanted] = useState<boolean | null>(null);
  const box = useRef<HTMLInputElement>(null);
  const router = useRouter();

  // Typing goes first; the list follows.
  const words = useDeferredValue(find);
  const list = useMemo(() => all.data ?? [], [all.data]);
  const { phase, node, tag } = search;
  const shown = useMemo(
    () => ordered(narrowed(list, { find: words, phase, node, tag }), order),
    [list, words, phase, node, tag, order],
  );
  const offered = useMemo(() => choices(list), [list]);
  // Only those that are there still, and in sight: nobody shall turn off what they do not see.
  const targets = useMemo(() => shown.filter((vm) => chosen.has(vm.id)), [shown, chosen]);

  const operator = mayDo(role, "operator");
  const screens = operator && (wanted ?? list.length <= SCREENS_MAX);

  const set = (change: Partial<ListSearch>) =>
    void navigate({ search: (old: ListSearch) => ({ ...old, ...change }), replace: true });

  // The address follows when the typing rests: browsers allow it only so many changes.
  useEffect(() => {
    const kept = find || undefined;
    if (kept === search.find) return;
    const timer = setTimeout(() => {
      // Whoever is on the way to another page stays on it: this would call them back.
      if (router.latestLocation.pathname !== "/vms") return;
      void navigate({ search: (old: ListSearch) => ({ ...old, find: kept }), replace: true });
    }, ADDRESS_FOLLOWS_MS);
    return () => clearTimeout(timer);
  }, [find, search.find, navigate, router]);

  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      const typing = event.target instanceof HTMLElement && /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
      if (event.key === "/" && !typing) {
        event.preventDefault();
        box.current?.focus();
      }
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, []);

  return (
    <div className="page-full">
      <div className="page-head">
        <h1>Machines</h1>
        <span className="quiet-text" role="status">
          {all.data ? count(shown.length, list.length, targets.length) : ""}
        </span>
        {mayDo(role, "administrator") ? (
          <Link to="/new" className="button main">
            Create a machine
          </Link>
        ) : (
          <span className="quiet-text">Creating machines needs the role administrator.</span>
        )}
      </div>
      <div className="filters" role="search">
        <input
          ref={box}
          type="search"
          aria-label="Find by name, address, tag or node"
          placeholder="Find by name, address, tag or node ( / )"
          value={find}
          onChange={(event) => setFind(event.target.value)}
        />
        <Filter label="State" value={phase} options={offered.phases} onChange={(phase) => set({ phase })} />
        <Filter label="Node" value={node} options={offered.nodes} onChange={(node) => set({ node })} />
        <Filter label="Tag" value={tag} options={offered.tags} onChange={(tag) => set({ tag })} />
        <Button
          kind="quiet"
          aria-pressed={screens}
          why={operator ? undefined : "Seeing screens needs the role operator."}
          onPress={() => setWanted(!screens)}
        >
          Screens
        </Button>
      </div>
      <ActionBar targets={targets} label="What to do with the chosen machines" />
      {all.error && <Trouble error={all.error} what="The list is not new" />}
      {all.isPending && !all.error && <Waiting what="the machines" />}
      {all.data && list.length === 0 && (
        <p>
          There are no machines yet. <Link to="/start">The first one, in three steps</Link>
        </p>
      )}
      {list.length > 0 && shown.length === 0 && <p>No machine matches. Take a filter away.</p>}
      {shown.length > 0 && (
        <VmTable list={shown} screens={screens} order={order} onOrder={setOrder} chosen={chosen} onChosen={setChosen} />
      )}
    </div>
  );
}

function count(shown: number, all: number, chosen: number): string {
  const some = shown === all ? `${all.toLocaleString()}` : `${shown.toLocaleString()} of ${all.toLocaleString()}`;
  return chosen > 0 ? `${some}, ${chosen.toLocaleString()} chosen` : some;
}

function Filter({ label, value, options, onChange }: {
  label: string;
  value: string | undefined;
  options: string[];
  onChange: (value: string | undefined) => void;
}) {
  // One that is chosen and no longer occurs must still be seen, to be taken away.
  const all = value === undefined || options.includes(value) ? options : [value, ...options];
  return (
    <select
      aria-label={label}
      value={value ?? ""}
      onChange={(event) => onChange(event.target.value || undefined)}
    >
      <option value="">{label}: all</option>
      {all.map((option) => (
        <option key={option}>{option}</option>
      ))}
    </select>
  );
}
