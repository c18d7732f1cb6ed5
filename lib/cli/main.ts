#!/usr/bin/env node
import { tolerateClosedOutput } from "../train/signals.js";
import { reportError, runCli } from "./program.js";

tolerateClosedOutput();
process.on("uncaughtException", (error) => process.exit(reportError(error)));
process.on("unhandledRejection", (reason) => process.exit(reportError(reason)));
process.exitCode = await runCli(process.argv.slice(2));
