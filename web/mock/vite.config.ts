// Vite's servers with the mock behind them; ordinary builds know nothing of it.

import { mergeConfig } from "vite";
import pages from "../vite.config";
import { mock } from "./plugin";

export default mergeConfig(pages, { plugins: [mock()] });
