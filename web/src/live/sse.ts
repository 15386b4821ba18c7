// Server-sent events, read by hand: a browser's own reader hides why a stream ended, and the lines by
// which the daemon says that it lives.

/** What a stream brings. */
export type Line = { kind: "alive" } | { kind: "event"; data: string };

/** Longest unfinished line that is kept: events are some hundred characters. */
const LINE_CHARS_MAX = 1 << 20;

/** Takes pieces of a stream as they come, gives the lines that are whole. */
export class Reader {
  private rest = "";
  private data: string[] = [];

  /** Reads one more piece. Throws if a line is longer than any of ours. */
  push(piece: string): Line[] {
    const lines: Line[] = [];
    this.rest += piece;
    for (;;) {
      const end = this.rest.indexOf("\n");
      if (end < 0) break;
      const line = this.rest.slice(0, end).replace(/\r$/, "");
      this.rest = this.rest.slice(end + 1);
      if (line === "") {
        if (this.data.length > 0) lines.push({ kind: "event", data: this.data.join("\n") });
        this.data = [];
      } else if (line.startsWith(":")) {
        lines.push({ kind: "alive" });
      } else if (line.startsWith("data:")) {
        this.data.push(line.slice(5).replace(/^ /, ""));
      }
    }
    if (this.rest.length > LINE_CHARS_MAX) throw new Error("a line of the event stream has no end");
    return lines;
  }
}
