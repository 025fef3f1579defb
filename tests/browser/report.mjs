// The report in a real Chromium: `node report.mjs CHROMIUM TRAINER SYNTHETIC_RUN CONFIG SCRATCH [PICTURES]`.
// It ends with an error when the page asks the network for anything, runs what a model wrote, is wider than a phone,
// is slow to open, or does not follow a run.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

import { start } from "./chromium.mjs";

const [program, trainer, synthetic, config, scratch, pictures] = process.argv.slice(2);
// From the navigation to the first picture with all its data in it.
const OPENS_MS = 2000;
const [AGENTS, CALLS] = [100, 1500];
const pause = (ms) => new Promise((wake) => setTimeout(wake, ms));
const children = [];

async function keep(tab, name, selector = null) {
  if (!pictures) return;
  mkdirSync(pictures, { recursive: true });
  writeFileSync(join(pictures, `${name}.png`), await tab.picture(selector));
}

const ratio = (tab, a, b) => tab.evaluate(`(() => {
  const style = getComputedStyle(document.documentElement);
  const light = (name) => {
    const [r, g, b] = style.getPropertyValue(name).trim().match(/[0-9a-f]{2}/gi).map((h) => parseInt(h, 16) / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [x, y] = [light("${a}"), light("${b}")].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05);
})()`);

const clean = (tab, what) => {
  assert.deepEqual(tab.errors, [], `${what}: the page's own errors`);
  assert.equal(tab.dialogs, 0, `${what}: something that a model wrote was run`);
};

async function hostileAndLarge(browser) {
  const run = join(scratch, "large");
  execFileSync(synthetic, [run, String(AGENTS), String(CALLS)]);
  execFileSync(trainer, ["report", run], { stdio: "ignore" });
  const url = pathToFileURL(join(run, "report.html")).href;
  const tab = await browser.open();
  const opened = [];
  for (let i = 0; i < 3; i += 1) opened.push(await tab.visit(url));
  console.log(`opens in ${opened.join(", ")} ms: ${AGENTS} agents of ${CALLS} steps each`);
  assert.ok(Math.min(...opened) <= OPENS_MS, `it opens in ${opened} ms, not in ${OPENS_MS}`);
  assert.deepEqual([...new Set(tab.requests)], [url], "the page asks for more than itself");

  const compared = await tab.evaluate("(() => { const t = document.querySelector('[aria-label=Ablations]'); return [t.querySelectorAll('tr.own').length, t.textContent]; })()");
  assert.equal(compared[0], 1, "the run's own row is not told from the others");
  assert.ok(compared[1].includes("caption </script><script>window.owned='caption'"), compared[1]);

  // The keyboard alone: to the hostile episode, through its lanes, into every agent's texts.
  await tab.evaluate("document.querySelector('.picker [aria-selected=true]').focus()");
  await tab.press("Home");
  assert.match(await tab.evaluate("document.activeElement.textContent"), /first step/);
  await tab.evaluate("document.querySelector('.scroller').focus()");
  const read = () => tab.evaluate("document.querySelector('.detail').textContent");
  const title = () => tab.evaluate("document.querySelector('.detail h3').textContent");
  await tab.press("ArrowRight");
  await tab.until("document.querySelector('.detail h3')", "the orchestrator's texts");
  assert.match(await title(), /^0 · .* model call 1 of 3$/s);
  const first = await read();
  for (const field of ["system_prompt", "assigned_prompt", "assistant", "tool_name", "arguments", "token"]) {
    assert.ok(first.includes(`${field} </script><script>window.owned='${field}'`), `${field} is not shown as it was written`);
  }
  assert.deepEqual(await tab.evaluate("[...document.querySelectorAll('.tokens span[title*=log-prob]')].map((s) => s.className)"), ["p0", "p2", "p3", "p4"]);
  const seen = new Set();
  for (let i = 0; i < 12; i += 1) {
    await tab.press("ArrowDown");
    await tab.press("ArrowRight");
    await pause(30);
    seen.add((await title()).split(" ")[0]);
  }
  assert.equal(seen.size, 12, "the arrow keys do not reach every agent");
  await tab.evaluate("document.querySelector('#more').open = true; document.querySelector('.plain').open = true; for (const d of document.querySelectorAll('.config details')) d.open = true");
  await pause(300);
  await keep(tab, "hostile", "body");
  assert.equal(await tab.evaluate("window.owned === undefined && document.images.length"), 0);
  assert.equal(await tab.evaluate("[...document.scripts].filter((s) => s.type !== 'application/json').length"), 1);

  // A click in the large one.
  await tab.evaluate("document.querySelectorAll('.picker button')[1].click(); document.querySelector('.tools').scrollIntoView({ behavior: 'instant' })");
  await pause(200);
  const box = await tab.evaluate("(() => { const b = document.querySelector('.scroller').getBoundingClientRect(); return [b.left, b.top, b.width]; })()");
  await tab.move(box[0] + box[2] * 0.3, box[1] + 26 + 5 * 20 + 10);
  assert.match(await tab.evaluate("document.querySelector('.tip').textContent"), /^5 name/);
  const begin = Date.now();
  await tab.click(box[0] + box[2] * 0.3, box[1] + 26 + 5 * 20 + 10);
  await tab.until("/^5 ·/.test((document.querySelector('.detail h3') || {}).textContent || '')", "the clicked call");
  console.log(`a click is answered in ${Date.now() - begin} ms`);
  await tab.evaluate("document.querySelectorAll('.tools button')[1].click()");
  await pause(200);
  await keep(tab, "large");
  clean(tab, "the hostile run");
  await tab.close();

  for (const dark of [false, true]) {
    const phone = await browser.open({ width: 390, height: 844, mobile: true, dark });
    await phone.visit(url);
    await phone.evaluate("document.querySelectorAll('.picker button')[0].click(); document.querySelector('.scroller').focus()");
    await phone.press("ArrowRight");
    await pause(300);
    assert.ok(await phone.evaluate("document.documentElement.scrollWidth") <= 390, "a phone has to scroll sideways");
    for (const name of ["--text", "--muted", "--accent"]) {
      for (const ground of ["--surface", "--ground", "--sunk"]) assert.ok(await ratio(phone, name, ground) >= 4.5, `${name} on ${ground}, ${dark ? "dark" : "light"}, is hard to read`);
    }
    for (const name of ["--c0", "--c1", "--c2", "--c3", "--c4", "--c5", "--model", "--tool", "--bad", "--focus"]) {
      assert.ok(await ratio(phone, name, "--surface") >= 3, `${name} is hard to see, ${dark ? "dark" : "light"}`);
    }
    await keep(phone, `phone-${dark ? "dark" : "light"}`);
    clean(phone, "the phone");
    await phone.close();
  }
}

/** Starts the trainer and gives its child and the address that it prints. */
function served(...parameters) {
  const child = spawn(trainer, parameters, { stdio: ["ignore", "pipe", "inherit"] });
  children.push(child);
  let said = "";
  return new Promise((done, fail) => {
    child.stdout.setEncoding("utf8").on("data", (text) => {
      said += text;
      const address = /http:\/\/127\.0\.0\.1:\d+\//.exec(said);
      if (address) done([child, address[0]]);
    });
    child.on("error", fail);
    child.on("exit", (code) => fail(new Error(`trainer ${parameters.join(" ")} ended with code ${code}: ${said}`)));
  });
}

const gone = (child) => new Promise((done) => (child.exitCode === null && child.signalCode === null ? child.once("exit", done) : done()));

async function live(browser) {
  const run = join(scratch, "live");
  const steps = 2000; // more than are waited for: it is stopped when enough is seen, on a fast machine too
  const [training, address] = await served("run", "--config", config, "--run-dir", run, "--watch=0", `run.max_steps=${steps}`, "run.final_eval_tasks=0");
  const tab = await browser.open();
  await tab.visit(address);
  // Everything is followed: the curve's cursor goes to the last step that there is.
  const lines = () => tab.evaluate("Number(document.querySelector('.tile .value').firstChild.textContent)");
  await tab.until("document.querySelector('.tile .value') && Number(document.querySelector('.tile .value').firstChild.textContent) >= 1", "a first step");
  const before = await lines();
  assert.ok(before < steps, "the run was over before the page was open");
  await tab.until(`Number(document.querySelector('.tile .value').firstChild.textContent) > ${before}`, "a further step");
  const seen = await lines();
  console.log(`followed the run from step ${before} to step ${seen}`);
  training.kill();
  await gone(training);
  await tab.until("document.querySelector('#live').classList.contains('lost')", "the page says that the server is gone");
  tab.errors.length = 0; // what the browser itself says of a connection that is refused
  await tab.close();

  const [watcher, again] = await served("watch", run, "--port", "0");
  const page = await browser.open();
  await page.visit(again);
  assert.ok(await page.evaluate("Number(document.querySelector('.tile .value').firstChild.textContent)") >= seen, "steps are lost");
  await page.evaluate("document.querySelector('.scroller').focus()");
  await page.press("ArrowRight");
  await page.until("document.querySelector('.detail h3')", "texts from the server");
  assert.ok(await page.evaluate("document.querySelectorAll('.detail .tokens span').length") > 10, "no tokens");
  const asked = page.requests.length;
  await pause(2500);
  assert.ok(page.requests.length > asked, "it stopped asking");
  for (const url of page.requests) assert.ok(url.startsWith(again), `${url} is another server`);
  await keep(page, "watch");
  clean(page, "the watched run");
  watcher.kill();
  await gone(watcher);
}

const browser = await start(program);
try {
  await hostileAndLarge(browser);
  await live(browser);
} finally {
  for (const child of children) child.kill();
  await browser.stop();
}
console.log("the report is as it should be");
