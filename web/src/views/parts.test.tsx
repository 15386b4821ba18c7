// Parts of pages, worked as a person works them.

import { screen, waitFor, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { beforeEach, describe, expect, it, vi } from "vitest";
import type { Schemas } from "../api/client";
import { answer, many, refusal, summaryOf } from "../fixtures";
import { page } from "../page";
import { ActionBar } from "./ActionBar";
import { SignIn } from "./SignIn";
import { VmTable } from "./VmTable";

const navigate = vi.fn();
vi.mock("@tanstack/react-router", async (original) => ({
  ...(await original<object>()),
  useNavigate: () => navigate,
}));

function op(state: object): Schemas["OpView"] {
  return {
    id: "o1",
    verb: "vm_start",
    title: "start web-1",
    target: "web-1",
    actor: "user root",
    begun: 1,
    deadline: 2,
    ...state,
  } as Schemas["OpView"];
}

describe("signing in", () => {
  beforeEach(() => window.history.replaceState(null, "", "/"));

  it("shows why a token was refused, and the next step", async () => {
    const came = answer({
      "POST /v1/sessions": () => refusal(401, "unauthenticated", "no valid token was shown", "make one"),
    });
    page(<SignIn ended={false} />);
    const button = screen.getByRole("button", { name: "Sign in" });
    expect(button).toHaveProperty("disabled", true);
    await userEvent.type(screen.getByLabelText("Token"), " secret ");
    await userEvent.click(button);
    expect((await screen.findByRole("alert")).textContent).toContain("Next: make one");
    expect(await came[0]?.json()).toEqual({ token: "secret" });
  });

  it("uses the link in the address once and takes it out of there", async () => {
    window.history.replaceState(null, "", "/sign-in#0123abcd");
    const came = answer({
      "POST /v1/sessions": () => refusal(401, "link_used", "this link has been used", "muster web"),
    });
    const { rerender } = page(<SignIn ended={false} />);
    expect((await screen.findByRole("alert")).textContent).toContain("has been used");
    rerender(<div />);
    expect(window.location.hash).toBe("");
    expect(came).toHaveLength(1);
    expect(await came[0]?.json()).toEqual({ link: "0123abcd" });
  });
});

describe("actions", () => {
  it("says why something cannot be done", () => {
    page(<ActionBar targets={[summaryOf()]} label="Actions" />, "viewer");
    const button = screen.getByRole("button", { name: "Shut down" });
    expect(button).toHaveProperty("disabled", true);
    const why = document.getElementById(button.getAttribute("aria-describedby") ?? "");
    expect(why?.textContent).toContain("role operator");
  });

  it("begins at once what loses nothing, and tells how it ends", async () => {
    const came = answer({
      "POST /v1/vms/v1/start": () => op({ state: "running", cancel_requested: false }),
      "GET /v1/ops/o1/wait": () =>
        op({
          state: "failed",
          at: 5,
          failure: { code: "no_memory", message: "the host is full", hint: "make room" },
        }),
    });
    page(<ActionBar targets={[summaryOf({ id: "v1", phase: "off" })]} label="Actions" />);
    await userEvent.click(screen.getByRole("button", { name: "Start" }));
    expect(await screen.findByText(/the host is full. Next: make room/)).toBeDefined();
    expect(came).toHaveLength(2);
    await userEvent.click(screen.getByRole("button", { name: /Put away/ }));
    expect(screen.queryByText(/the host is full/)).toBeNull();
  });

  it("does not call failed what goes on while the node is silent", async () => {
    let asked = 0;
    answer({
      "POST /v1/vms/v1/start": () => op({ state: "running", cancel_requested: false }),
      "GET /v1/ops/o1/wait": () => {
        asked += 1;
        if (asked === 1) throw new Error("the connection broke");
        return op({ state: "done", at: 5 });
      },
    });
    page(<ActionBar targets={[summaryOf({ id: "v1", phase: "off" })]} label="Actions" />);
    await userEvent.click(screen.getByRole("button", { name: "Start" }));
    expect(await screen.findByText(/: done/)).toBeDefined();
    expect(asked).toBe(2);
  });

  it("asks before a power cut, and for a number before many of them", async () => {
    const came = answer({
      "POST /v1/vms/v0/off": () => op({ state: "done", at: 5 }),
    });
    const five = many(7).map((vm, n) => ({ ...vm, id: `v${n}`, phase: "running" as const }));
    page(<ActionBar targets={five} label="Actions" />);
    await userEvent.click(screen.getByRole("button", { name: "Turn off …" }));
    const question = await screen.findByRole("alertdialog");
    const sure = within(question).getByRole("button", { name: "Turn off" });
    expect(sure).toHaveProperty("disabled", true);
    await userEvent.type(within(question).getByRole("textbox"), "6");
    expect(sure).toHaveProperty("disabled", true);
    await userEvent.keyboard("{Escape}");
    await waitFor(() => expect(screen.queryByRole("alertdialog")).toBeNull());
    expect(came, "nothing was asked of the API").toHaveLength(0);
  });
});

describe("the table of machines", () => {
  const size = { width: 1000, height: 600 };
  beforeEach(() => {
    navigate.mockReset();
    // There is no layout here: the place that scrolls is as large as it is said to be.
    vi.spyOn(HTMLElement.prototype, "clientHeight", "get").mockReturnValue(size.height);
    vi.spyOn(HTMLElement.prototype, "clientWidth", "get").mockReturnValue(size.width);
  });

  function table(chosen = new Set<string>(), onChosen = vi.fn()) {
    const list = many(8_000);
    page(
      <VmTable
            screens={false}
        list={list}
        order={{ by: "name", down: false }}
        onOrder={vi.fn()}
        chosen={chosen}
        onChosen={onChosen}
      />,
    );
    return { list, onChosen, grid: screen.getByRole("grid", { name: "Machines" }) };
  }

  it("has only the lines in sight, and says how many there are", async () => {
    const { grid } = table();
    expect(grid.getAttribute("aria-rowcount")).toBe("8000");
    const rows = (await within(grid).findAllByRole("row")).length;
    expect(rows).toBeGreaterThan(10);
    expect(rows).toBeLessThan(60);
  });

  it("is worked by keys", async () => {
    const { grid, list, onChosen } = table();
    grid.focus();
    await userEvent.keyboard("{ArrowDown}{ArrowDown} ");
    expect([...onChosen.mock.lastCall?.[0]]).toEqual([list[2]?.id]);
    await userEvent.keyboard("{ArrowUp}{Enter}");
    expect(navigate).toHaveBeenCalledWith({ to: "/vms/$vm", params: { vm: list[1]?.id } });
    await userEvent.keyboard("{Control>}a{/Control}");
    expect(onChosen.mock.lastCall?.[0].size).toBe(8_000);
    await userEvent.keyboard("{Escape}");
    expect(onChosen.mock.lastCall?.[0].size).toBe(0);
  });
});
