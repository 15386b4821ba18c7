// The table of machines: only the lines in sight are in the page, so that 8,000 cost no more than 30.
//
// It is one stop for the Tab key. Inside: arrows move, Space chooses, Enter opens, Ctrl+A chooses all.

import { useVirtualizer } from "@tanstack/react-virtual";
import { useNavigate } from "@tanstack/react-router";
import { type KeyboardEvent, useEffect, useId, useRef, useState } from "react";
import { bytes, heartbeat, phaseTone, word } from "../parts/format";
import { Badge } from "../parts/parts";
import type { Order, SortKey, Vm } from "./filter";
import { Thumbnail } from "./Thumbnail";

const COLUMNS: { key: SortKey | null; label: string; name: string }[] = [
  { key: "name", label: "Name", name: "name" },
  { key: "phase", label: "State", name: "state" },
  { key: "node", label: "Node", name: "node" },
  { key: "cpu_percent", label: "CPU", name: "cpu" },
  { key: "memory", label: "Memory", name: "memory" },
  { key: null, label: "Guest", name: "guest" },
  { key: null, label: "Addresses", name: "addresses" },
];

/** Below this width a line is two lines high, in pixels. */
const NARROW_PX = 700;

/** Heights of a line, in pixels: as it is, on a narrow screen, and with a small picture. */
const LINE_PX = 36;
const LINE_NARROW_PX = 64;
const LINE_SCREEN_PX = 92;

/** How often small pictures of the machines in sight are taken, in milliseconds. */
const SCREENS_MS = 30_000;

interface Props {
  list: Vm[];
  /** Whether the machines' screens are shown. */
  screens: boolean;
  order: Order;
  onOrder: (order: Order) => void;
  chosen: ReadonlySet<string>;
  onChosen: (chosen: Set<string>) => void;
}

export function VmTable({ list, screens, order, onOrder, chosen, onChosen }: Props) {
  const place = useRef<HTMLDivElement>(null);
  const [active, setActive] = useState(0);
  const navigate = useNavigate();
  const prefix = useId();
  const narrow = useNarrow();
  const virtual = useVirtualizer({
    count: list.length,
    getScrollElement: () => place.current,
    estimateSize: () => (screens ? LINE_SCREEN_PX : narrow ? LINE_NARROW_PX : LINE_PX),
    overscan: 12,
    getItemKey: (index) => list[index]?.id ?? index,
  });
  useEffect(() => virtual.measure(), [narrow, screens, virtual]);
  const at = Math.min(active, Math.max(0, list.length - 1));

  const choose = (id: string) => {
    const next = new Set(chosen);
    if (!next.delete(id)) next.add(id);
    onChosen(next);
  };
  const open = (vm: Vm | undefined) => {
    if (vm) void navigate({ to: "/vms/$vm", params: { vm: vm.id } });
  };
  const move = (to: number) => {
    const next = Math.max(0, Math.min(list.length - 1, to));
    setActive(next);
    virtual.scrollToIndex(next);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const page = 15;
    const moves: Record<string, number> = {
      ArrowDown: at + 1,
      ArrowUp: at - 1,
      PageDown: at + page,
      PageUp: at - page,
      Home: 0,
      End: list.length - 1,
    };
    const vm = list[at];
    if (event.key in moves) move(moves[event.key] ?? at);
    else if (event.key === " " && vm) choose(vm.id);
    else if (event.key === "Enter") open(vm);
    else if (event.key === "a" && (event.ctrlKey || event.metaKey)) {
      onChosen(new Set(list.map((vm) => vm.id)));
    } else if (event.key === "Escape") onChosen(new Set());
    else return;
    event.preventDefault();
  };

  return (
    <div className="vm-table">
      <div className="vm-sort" role="group" aria-label="Order">
        <span className="choose" aria-hidden="true" />
        {COLUMNS.map((column) => (
          <span key={column.name} className={`cell ${column.name}`}>
            {column.key === null ? (
              column.label
            ) : (
              <SortButton column={column.key} label={column.label} order={order} onOrder={onOrder} />
            )}
          </span>
        ))}
      </div>
      <div
        ref={place}
        className="vm-rows"
        role="grid"
        aria-label="Machines"
        aria-multiselectable="true"
        aria-rowcount={list.length}
        aria-colcount={COLUMNS.length}
        {...(list.length > 0 ? { "aria-activedescendant": `${prefix}-${at}` } : {})}
        tabIndex={0}
        onKeyDown={onKeyDown}
      >
        <div role="presentation" style={{ blockSize: virtual.getTotalSize(), position: "relative" }}>
          {virtual.getVirtualItems().map((item) => {
            const vm = list[item.index];
            if (!vm) return null;
            return (
              <Row
                key={item.key}
                id={`${prefix}-${item.index}`}
                vm={vm}
                screens={screens}
                index={item.index}
                top={item.start}
                height={item.size}
                active={item.index === at}
                chosen={chosen.has(vm.id)}
                onChoose={() => {
                  setActive(item.index);
                  choose(vm.id);
                }}
                onOpen={() => open(vm)}
              />
            );
          })}
        </div>
      </div>
    </div>
  );
}

function SortButton({ column, label, order, onOrder }: {
  column: SortKey;
  label: string;
  order: Order;
  onOrder: (order: Order) => void;
}) {
  const by = order.by === column;
  const how = by ? (order.down ? ", descending" : ", ascending") : "";
  return (
    <button
      type="button"
      className="sort"
      aria-pressed={by}
      aria-label={`Order by ${label}${how}`}
      onClick={() => onOrder({ by: column, down: by && !order.down })}
    >
      {label}
      <span aria-hidden="true">{by ? (order.down ? " ▾" : " ▴") : ""}</span>
    </button>
  );
}

interface RowProps {
  id: string;
  vm: Vm;
  screens: boolean;
  index: number;
  top: number;
  height: number;
  active: boolean;
  chosen: boolean;
  onChoose: () => void;
  onOpen: () => void;
}

function Row({ id, vm, screens, index, top, height, active, chosen, onChoose, onOpen }: RowProps) {
  return (
    <div
      id={id}
      role="row"
      aria-rowindex={index + 1}
      aria-selected={chosen}
      className={`vm-row${active ? " active" : ""}${chosen ? " chosen" : ""}`}
      style={{ transform: `translateY(${top}px)`, blockSize: height }}
      onDoubleClick={onOpen}
    >
      <span role="gridcell" className="choose">
        {/* The keys of the grid do the same; the box is for pointers. */}
        <input
          type="checkbox"
          tabIndex={-1}
          checked={chosen}
          onChange={onChoose}
          aria-label={`Choose ${vm.name}`}
        />
      </span>
      <span role="gridcell" className="cell name">
        {screens && vm.phase === "running" && <Thumbnail vm={vm.id} name={vm.name} again={SCREENS_MS} />}
        <a
          href={`/vms/${vm.id}`}
          tabIndex={-1}
          onClick={(event) => {
            if (event.ctrlKey || event.metaKey || event.shiftKey) return;
            event.preventDefault();
            onOpen();
          }}
        >
          {vm.name}
        </a>
        {vm.tags.map((tag) => (
          <span key={tag} className="tag">
            {tag}
          </span>
        ))}
      </span>
      <span role="gridcell" className="cell state">
        <Badge tone={phaseTone(vm.phase)}>{vm.phase}</Badge>
        {vm.busy && <span className="quiet-text"> {word(vm.busy)} …</span>}
      </span>
      <span role="gridcell" className="cell node">
        {vm.node}
      </span>
      <span role="gridcell" className="cell cpu">
        {vm.phase === "running" ? `${vm.cpu_percent} %` : "–"}
        <span className="quiet-text"> of {vm.cpus}</span>
      </span>
      <span role="gridcell" className="cell memory">
        {bytes(vm.memory)}
      </span>
      <span role="gridcell" className="cell guest">
        {heartbeat(vm.heartbeat)}
      </span>
      <span role="gridcell" className="cell addresses">
        {vm.addresses.join(", ")}
      </span>
    </div>
  );
}

function useNarrow(): boolean {
  const query = `(max-width: ${NARROW_PX}px)`;
  const [narrow, setNarrow] = useState(() => window.matchMedia?.(query).matches ?? false);
  useEffect(() => {
    const media = window.matchMedia?.(query);
    if (!media) return;
    const told = () => setNarrow(media.matches);
    media.addEventListener("change", told);
    return () => media.removeEventListener("change", told);
  }, [query]);
  return narrow;
}
