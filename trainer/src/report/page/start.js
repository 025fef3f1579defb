// Begins: the data is in the page, or (on a live page) at the server, which is asked again and again.

const POLL_MS = 2000;
let timeline = null;
let data = null;

const embedded = (name) => {
  const block = byId(name);
  return block ? JSON.parse(block.textContent) : null;
};

async function textsOf(at, agent) {
  const inside = embedded(`texts-${at}-${agent}`);
  if (inside) return inside;
  const answer = await fetch(`texts/${encodeURIComponent(data.episodes[at].id)}/${agent}`, { cache: "no-store" });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

function render(next) {
  data = next;
  showHead(data);
  showTiles(data);
  showTables(data);
  showCurves(data);
  showConfig(data);
  byId("timeline-note").textContent = data.episodes.length
    ? `Who worked when, and what the episode had to wait for. ${count(data.episodes.length, "episode")} shown${data.read ? `, chosen from ${data.read} of ${count(data.sealed, "sealed step")}` : ""}. Choose a bar to read it; arrow keys move.`
    : "No step is sealed yet.";
  timeline.show(data.episodes);
}

function live(text, lost) {
  const mark = byId("live");
  mark.hidden = false;
  if (mark.textContent !== text) mark.textContent = text;
  mark.classList.toggle("lost", Boolean(lost));
}

async function poll() {
  let tag = null;
  let step = "";
  for (;;) {
    try {
      const answer = await fetch("data.json", { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
      if (answer.status === 200) {
        tag = answer.headers.get("etag");
        render(await answer.json());
        ready();
        step = data.series.steps.length ? `step ${Math.round(data.series.steps[data.series.steps.length - 1])}` : "no step yet";
      } else if (answer.status !== 304) {
        throw new Error(String(answer.status));
      }
      live(`live, ${step}`, false);
    } catch {
      live("the server is gone; this is the last that it said", true);
    }
    await new Promise((wake) => setTimeout(wake, POLL_MS));
  }
}

/** Tells (a test, a person with the developer tools) when the first picture was on the screen. */
function ready() {
  if (document.documentElement.dataset.ready) return;
  requestAnimationFrame(() => setTimeout(() => { document.documentElement.dataset.ready = String(Math.round(performance.now())); }));
}

timeline = new Timeline(byId("swarm"), textsOf);
const inside = embedded("data");
if (inside) {
  render(inside);
  ready();
} else {
  live("connecting", false);
  poll();
}
