// Drives a headless Chromium over its debugging pipe: no package, no port.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-default-browser-check",
  "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
  "--disable-extensions", "--hide-scrollbars", "--remote-debugging-pipe",
];
const PATIENCE_MS = 30000;

export async function start(program) {
  const profile = mkdtempSync(join(tmpdir(), "parl-chromium-"));
  const child = spawn(program, [...FLAGS, `--user-data-dir=${profile}`, "about:blank"], {
    stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
  });
  let next = 0;
  let rest = "";
  const asked = new Map();
  const listeners = [];
  const gone = new Promise((_, fail) => {
    child.on("error", fail);
    child.on("exit", (code) => fail(new Error(`${program} ended with code ${code}`)));
  });
  gone.catch(() => {});
  child.stdio[3].on("error", () => {});
  child.stdio[4].setEncoding("utf8").on("data", (chunk) => {
    const messages = (rest + chunk).split("\0");
    rest = messages.pop();
    for (const message of messages.map((text) => JSON.parse(text))) {
      const wait = asked.get(message.id);
      if (wait) {
        asked.delete(message.id);
        if (message.error) wait.fail(new Error(`${wait.method}: ${message.error.message}`));
        else wait.done(message.result);
      } else {
        for (const listener of listeners) listener(message);
      }
    }
  });
  const send = (method, params = {}, sessionId = undefined) => {
    const answer = new Promise((done, fail) => {
      next += 1;
      asked.set(next, { method, done, fail });
      const timer = setTimeout(() => fail(new Error(`${method}: no answer in ${PATIENCE_MS} ms`)), PATIENCE_MS);
      timer.unref();
      child.stdio[3].write(`${JSON.stringify({ id: next, method, params, sessionId })}\0`);
    });
    return Promise.race([answer, gone]);
  };

  /** A tab of a given size; it remembers what went wrong in it and what it asked the network for. */
  async function open({ width = 1280, height = 900, dark = false, mobile = false } = {}) {
    const { targetId } = await send("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await send("Target.attachToTarget", { targetId, flatten: true });
    const tab = { errors: [], requests: [], dialogs: 0 };
    const call = (method, params) => send(method, params, sessionId);
    listeners.push((message) => {
      if (message.sessionId !== sessionId) return;
      const { method, params } = message;
      if (method === "Runtime.exceptionThrown") tab.errors.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
      if (method === "Runtime.consoleAPICalled" && params.type === "error") tab.errors.push(params.args.map((a) => a.value ?? a.description).join(" "));
      if (method === "Log.entryAdded" && params.entry.level === "error") tab.errors.push(`${params.entry.text} ${params.entry.url ?? ""}`);
      if (method === "Network.requestWillBeSent") tab.requests.push(params.request.url);
      if (method === "Page.javascriptDialogOpening") { tab.dialogs += 1; call("Page.handleJavaScriptDialog", { accept: true }); }
    });
    for (const domain of ["Page", "Runtime", "Log", "Network"]) await call(`${domain}.enable`);
    tab.size = (w, h, phone = false) => call("Emulation.setDeviceMetricsOverride", { width: w, height: h, deviceScaleFactor: phone ? 2 : 1, mobile: phone });
    tab.theme = (isDark) => call("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: isDark ? "dark" : "light" }] });
    await tab.size(width, height, mobile);
    await tab.theme(dark);
    tab.evaluate = async (expression) => {
      const answer = await call("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
      if (answer.exceptionDetails) throw new Error(`${expression}: ${answer.exceptionDetails.exception?.description ?? answer.exceptionDetails.text}`);
      return answer.result.value;
    };
    tab.until = async (expression, what, patience = 20000) => {
      const end = Date.now() + patience;
      for (;;) {
        const value = await tab.evaluate(expression);
        if (value) return value;
        if (Date.now() > end) throw new Error(`${what}: not after ${patience} ms`);
        await new Promise((wake) => setTimeout(wake, 50));
      }
    };
    tab.visit = async (url, patience = 30000) => {
      await call("Page.navigate", { url });
      return Number(await tab.until("document.documentElement && document.documentElement.dataset.ready", `${url} is drawn`, patience));
    };
    tab.press = async (key, text = undefined) => {
      await call("Input.dispatchKeyEvent", { type: text ? "keyDown" : "rawKeyDown", key, text });
      await call("Input.dispatchKeyEvent", { type: "keyUp", key });
    };
    tab.click = async (x, y) => {
      const at = { x, y, button: "left", clickCount: 1 };
      await call("Input.dispatchMouseEvent", { type: "mouseMoved", x, y });
      await call("Input.dispatchMouseEvent", { type: "mousePressed", ...at, buttons: 1 });
      await call("Input.dispatchMouseEvent", { type: "mouseReleased", ...at });
    };
    tab.move = (x, y) => call("Input.dispatchMouseEvent", { type: "mouseMoved", x, y });
    /** A PNG of what is seen, or of all of the element that a selector names. */
    tab.picture = async (selector = null) => {
      const clip = selector === null ? undefined : await tab.evaluate(`(() => {
        const box = document.querySelector(${JSON.stringify(selector)}).getBoundingClientRect();
        return { x: box.left + scrollX, y: box.top + scrollY, width: box.width, height: box.height, scale: 1 };
      })()`);
      const { data } = await call("Page.captureScreenshot", { format: "png", captureBeyondViewport: selector !== null, clip });
      return Buffer.from(data, "base64");
    };
    tab.close = () => send("Target.closeTarget", { targetId });
    return tab;
  }

  async function stop() {
    const ended = new Promise((done) => child.once("exit", done));
    await send("Browser.close").catch(() => child.kill());
    await ended;
    rmSync(profile, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
  }

  return { open, stop };
}
