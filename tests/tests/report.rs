//! `trainer report` and `trainer watch` from outside: hostile runs, damaged ones, folders that are none.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its fixtures too")]
#![expect(clippy::disallowed_methods, reason = "clippy.toml: tests write and damage files as they like")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use parl_tests::synthetic::{dialect, episode, hostile, write_run};
use parl_tests::{Folder, trainer};
use serde_json::Value;

/// A run of three steps of one episode each.
fn run_in(folder: &Folder, text: &dyn Fn(&str) -> String) -> PathBuf {
    let run = folder.join("run");
    let dialect = dialect().unwrap();
    let of_step =
        |step: u32| episode(&format!("s{step:06}-g0000-e0000"), 4 + 8 * step, 4, &dialect, text).unwrap();
    write_run(&run, &[of_step(0), of_step(1), of_step(2)], text).unwrap();
    run
}

/// Contents of the page's data blocks, by name.
fn blocks(html: &str) -> Vec<(String, Value)> {
    let parts = html.split("<script type=\"application/json\" id=\"").skip(1);
    parts
        .map(|part| {
            let (name, rest) = part.split_once("\">").unwrap();
            let (json, _) = rest.split_once("</script>").unwrap();
            (name.to_owned(), serde_json::from_str(json).unwrap())
        })
        .collect()
}

#[test]
fn whatever_a_model_writes_stays_text() {
    let folder = Folder::new().unwrap();
    let run = run_in(&folder, &hostile);
    let outcome = folder.trainer(&["report", "run"]).unwrap();
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    assert!(outcome.out.contains("report.html: 3 steps, 3 episodes"), "{}", outcome.out);
    let html = fs::read_to_string(run.join("report.html")).unwrap();
    let blocks = blocks(&html);
    // Every tag of a script is ours: the blocks' and the program's. The data has no `<` at all.
    assert_eq!(html.matches("<script").count(), blocks.len() + 1);
    assert_eq!(html.matches("</script").count(), blocks.len() + 1);
    for word in ["<img", "-->", "alert('", "window.owned"] {
        let ours = word == "-->" || word == "alert('" || word == "window.owned";
        // What is no tag may stand in a block, where it is JSON.
        let outside: String = html
            .split("<script type=\"application/json\"")
            .map(|part| part.split_once("</script>").map_or(part, |(_, rest)| rest))
            .collect();
        assert!(!outside.contains(word), "{word} is outside of the data");
        assert!(ours || !html.contains(word), "{word}");
    }
    // Nothing was lost on the way, and every field is there.
    let all = serde_json::to_string(&blocks.iter().map(|(_, json)| json).collect::<Vec<_>>()).unwrap();
    for field in [
        "run_id",
        "override",
        "config value",
        "config key",
        "kind",
        "row",
        "ablation",
        "caption",
        "column",
        "cell",
        "metric",
        "refused",
        "task_id",
        "answer",
        "component",
        "name",
        "system_prompt",
        "assigned_prompt",
        "final_message",
        "finish_reason",
        "assistant",
        "tool",
        "tool_call_id",
        "tool_name",
        "arguments",
        "key",
        "step_finish_reason",
        "policy",
        "failure_kind",
        "error",
    ] {
        let wanted = serde_json::to_string(&hostile(field)).unwrap();
        // Arguments are JSON in JSON.
        let wanted = wanted.trim_matches('"').to_owned();
        let twice = serde_json::to_string(&wanted).unwrap();
        assert!(all.contains(&wanted) || all.contains(twice.trim_matches('"')), "{field} is not in the page");
    }
    let texts = blocks.iter().find(|(name, _)| name == "texts-0-0").map(|(_, json)| json).unwrap();
    let pieces: String =
        texts["tokens"][0]["pieces"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    assert!(pieces.contains("</script><script>window.owned='token'"), "{pieces}");
    // The policy lets the page's own program and style run, and nothing else.
    let (_, policy) = html.split_once("Content-Security-Policy\" content=\"").unwrap();
    let (policy, _) = policy.split_once('"').unwrap();
    let nonce = policy.split("script-src 'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'nonce-") && nonce.len() == 32, "{policy}");
    assert_eq!(html.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
    assert!(!all.contains(nonce));
    for foreign in ["http://", "https://", "src=", "@import", "url("] {
        let program = html.split(&format!("<script nonce=\"{nonce}\">")).nth(1).unwrap();
        let style = html.split("<style").nth(1).unwrap().split("</style>").next().unwrap();
        let own = [program.replace("http://www.w3.org/2000/svg", ""), style.to_owned()].concat();
        assert!(!own.contains(foreign), "the page fetches something: {foreign}");
    }
    assert!(
        !html.contains("innerHTML") && !html.contains("outerHTML") && !html.contains("insertAdjacentHTML")
    );
}

#[test]
fn episodes_are_chosen_or_named_and_the_file_may_be_elsewhere() {
    let folder = Folder::new().unwrap();
    let run = run_in(&folder, &str::to_owned);
    let page = |arguments: &[&str]| {
        let outcome =
            folder.trainer(&[&["report", "run", "--out", "page.html"], arguments].concat()).unwrap();
        assert_eq!(outcome.code, 0, "{}", outcome.err);
        let html = fs::read_to_string(folder.join("page.html")).unwrap();
        blocks(&html).into_iter().next().unwrap().1
    };
    let ids = |data: &Value| -> Vec<String> {
        data["episodes"].as_array().unwrap().iter().map(|e| e["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&page(&[])), ["s000000-g0000-e0000", "s000002-g0000-e0000", "s000001-g0000-e0000"]);
    let data = page(&["--episode", "s000001-g0000-e0000"]);
    assert_eq!(ids(&data), ["s000001-g0000-e0000"]);
    assert!(!run.join("report.html").exists());
    // What is drawn fits what was counted.
    let episode = &data["episodes"][0];
    assert_eq!(episode["agents"].as_array().unwrap().len(), 13);
    let stages = episode["stages"].as_array().unwrap();
    assert_eq!(stages.last().unwrap()["to"], episode["critical_steps"]);
    for agent in episode["agents"].as_array().unwrap() {
        let [from, to] = ["from", "to"].map(|side| agent["steps"][side].as_array().unwrap().clone());
        let cost: u64 = from.iter().zip(&to).map(|(a, b)| b.as_u64().unwrap() - a.as_u64().unwrap()).sum();
        let own = if agent["idx"] == 0 { 3 } else { agent["n_steps"].as_u64().unwrap() };
        assert_eq!(cost, own, "{agent}");
        let stage = stages.iter().find(|s| s["stage"] == agent["stage"]);
        assert!(stage.is_none_or(|s| from[0] == s["sub"] && to.last().unwrap().as_u64() <= s["to"].as_u64()));
    }
    let unknown = folder.trainer(&["report", "run", "--episode", "s000009-g0000-e0000"]).unwrap();
    assert_eq!(unknown.code, 2, "{unknown:?}");
    assert!(
        unknown.err.contains("no sealed step holds the episode `s000009-g0000-e0000`"),
        "{}",
        unknown.err
    );
}

#[test]
fn a_damaged_step_is_named_and_left_out() {
    let folder = Folder::new().unwrap();
    let run = run_in(&folder, &str::to_owned);
    let part = "trajectories/v1/steps/step_000001/part-r0000-000.parquet";
    let mut bytes = fs::read(run.join(part)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(run.join(part), bytes).unwrap();
    fs::write(run.join("final_eval.json"), "{").unwrap();
    fs::write(run.join("../ablations.json"), "[").unwrap();
    fs::remove_file(run.join("tokenizer.json")).unwrap();
    let outcome = folder.trainer(&["report", "run"]).unwrap();
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    assert!(outcome.out.contains("3 steps, 2 episodes"), "{}", outcome.out);
    for told in [
        part,
        "the file is damaged",
        "final_eval.json: not JSON",
        "ablations.json: not JSON",
        "tokens are shown by their ids",
    ] {
        assert!(outcome.out.contains(told), "{told} is not in {}", outcome.out);
    }
    let html = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(html.contains("the file is damaged"), "the page does not say so");
    let texts = blocks(&html).into_iter().find(|(name, _)| name == "texts-0-0").unwrap().1;
    assert!(texts["tokens"][0]["pieces"][0].as_str().unwrap().starts_with('#'));
    let named = folder.trainer(&["report", "run", "--episode", "s000001-g0000-e0000"]).unwrap();
    assert!(named.code == 2 && named.err.contains(part), "{named:?}");
}

#[test]
fn a_folder_that_holds_no_run_is_refused() {
    let folder = Folder::new().unwrap();
    fs::create_dir_all(folder.join("thesis")).unwrap();
    for verb in ["report", "watch"] {
        for (path, why) in [("thesis", "holds no run"), ("nowhere", "is not a folder")] {
            let outcome = folder.trainer(&[verb, path]).unwrap();
            assert_eq!(outcome.code, 2, "{outcome:?}");
            assert!(outcome.err.contains(path) && outcome.err.contains(why), "{}", outcome.err);
        }
    }
    assert!(fs::read_dir(folder.join("thesis")).unwrap().next().is_none());
}

/// A server that ends with its owner.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(run: &Path) -> Self {
        let mut child = Command::new(trainer())
            .args(["watch", &run.display().to_string(), "--port", "0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (_, port) = line.trim_end_matches(['/', '\n']).rsplit_once(':').unwrap();
        assert!(line.contains(" at http://127.0.0.1:"), "{line}");
        Self { child, port: port.parse().unwrap() }
    }

    /// Status line with headers, and body.
    fn ask(&self, request: &str) -> (String, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    fn get(&self, path: &str, more: &str) -> (String, String) {
        self.ask(&format!("GET {path} HTTP/1.0\r\nHost: localhost:{}\r\n{more}\r\n", self.port))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_watched_run_is_followed_and_never_written_to() {
    let folder = Folder::new().unwrap();
    let run = run_in(&folder, &hostile);
    let before = fs::read_dir(&run).unwrap().count();
    let server = Server::start(&run);
    let (head, page) = server.get("/", "");
    assert!(head.starts_with("HTTP/1.0 200") && head.contains("text/html"), "{head}");
    assert!(page.contains("connect-src 'self'") && !page.contains("application/json"), "the page holds data");
    let (head, body) = server.get("/data.json", "");
    let tag = head.lines().find_map(|l| l.strip_prefix("ETag: ")).unwrap().to_owned();
    let data: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((data["series"]["lines"].as_u64(), data["episodes"].as_array().unwrap().len()), (Some(3), 3));
    assert!(!body.contains('<'));
    // Unchanged costs nothing.
    let (head, body) = server.get("/data.json", &format!("If-None-Match: {tag}\r\n"));
    assert!(head.starts_with("HTTP/1.0 304") && body.is_empty(), "{head}");
    let (head, texts) = server.get("/texts/s000001-g0000-e0000/0", "");
    assert!(head.starts_with("HTTP/1.0 200") && texts.contains("\"assigned_prompt\":"), "{head}");
    let (head, metrics) = server.get("/metrics", "");
    assert!(
        head.contains("text/plain; version=0.0.4") && metrics.contains("\nparl_step{run=\"run_id "),
        "{metrics}"
    );

    let mut file = fs::OpenOptions::new().append(true).open(run.join("metrics.jsonl")).unwrap();
    writeln!(file, "{}", parl_tests::synthetic::metrics(3)).unwrap();
    let begin = Instant::now();
    let data: Value = loop {
        let (head, body) = server.get("/data.json", &format!("If-None-Match: {tag}\r\n"));
        if head.starts_with("HTTP/1.0 200") {
            break serde_json::from_str(&body).unwrap();
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "the line never came");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(data["series"]["lines"].as_u64(), Some(4));
    assert_eq!(fs::read_dir(&run).unwrap().count(), before, "the watcher wrote something");

    let refused = [
        ("GET / HTTP/1.1\r\nHost: rebound.example\r\nConnection: close\r\n\r\n", "403"),
        ("GET / HTTP/1.1\r\nHost: localhost.example:80\r\nConnection: close\r\n\r\n", "403"),
        ("GET / HTTP/1.0\r\n\r\n", "403"),
        ("POST / HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", "405"),
        ("DELETE /data.json HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n", "405"),
        ("GET /../parl-run.json HTTP/1.0\r\nHost: localhost\r\n\r\n", "404"),
        ("GET /metrics.jsonl HTTP/1.0\r\nHost: localhost\r\n\r\n", "404"),
        ("GET /texts/s000001-g0000-e0000/99 HTTP/1.0\r\nHost: localhost\r\n\r\n", "404"),
    ];
    for (request, status) in refused {
        let (head, body) = server.ask(request);
        assert!(head.split(' ').nth(1) == Some(status), "{request:?} gave {head}\n{body}");
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let folder = Folder::new().unwrap();
    let run = run_in(&folder, &str::to_owned);
    let server = Server::start(&run);
    let port = server.port.to_string();
    let outcome = folder.trainer(&["watch", "run", "--port", &port]).unwrap();
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.err.contains(&format!("cannot listen on 127.0.0.1, port {port}")), "{}", outcome.err);
}
