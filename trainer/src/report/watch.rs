//! `trainer watch`: the page of a run over loopback while it trains. It reads the run's files when somebody asks, and
//! never more often than it must; it changes nothing, and a run does not know of it.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use tiny_http::{Header, Request, Response, Server};

use super::episode;
use super::page;
use super::source::{ABLATIONS, Episodes, Page, Source};
use crate::error::TrainerError;
use crate::run::folder::Marker;
use crate::run::metrics::newest;
use crate::track::prometheus::exposition;

/// Asked for when nobody names a port; if it is taken, the system gives another.
const PORT: u16 = 7380;
/// The files are looked at no more often.
const LOOK_EVERY: Duration = Duration::from_millis(900);
/// Episodes are chosen anew no more often: that reads whole steps of the log.
const CHOOSE_EVERY: Duration = Duration::from_secs(10);
/// What the figures are made from.
const FILES: [&str; 6] = [
    "parl-run.json",
    "config.resolved.json",
    "metrics.jsonl",
    "start_eval.json",
    "final_eval.json",
    ABLATIONS,
];
/// Changes when a step is sealed.
const MANIFESTS: &str = "trajectories/v1/manifests";

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// The page.
    Page,
    /// Its data.
    Data,
    /// What an agent of an episode read and said.
    Texts {
        /// The episode.
        episode: &'a str,
        /// The agent.
        agent: u32,
    },
    /// The newest metrics in Prometheus' text.
    Metrics,
    /// Nothing that is given: the status, and why.
    Refused(u16, &'static str),
}

/// Which way a request goes. A browser that some other site's name led here asks with that site's name as the host:
/// names that are not this machine's own loopback are refused.
pub fn route<'a>(method: &str, url: &'a str, host: Option<&str>) -> Route<'a> {
    let name = |host: &str| match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name.to_ascii_lowercase(),
        _ => host.to_ascii_lowercase(),
    };
    let loopback = |host: &str| ["127.0.0.1", "localhost", "[::1]"].contains(&name(host).as_str());
    if !host.is_some_and(loopback) {
        return Route::Refused(403, "ask for 127.0.0.1 or localhost");
    }
    if method != "GET" {
        return Route::Refused(405, "this server only reads: GET");
    }
    let path = url.split(['?', '#']).next().unwrap_or_default();
    match path.split('/').skip(1).collect::<Vec<_>>().as_slice() {
        [""] => Route::Page,
        ["data.json"] => Route::Data,
        ["metrics"] => Route::Metrics,
        ["texts", episode, agent] => match agent.parse() {
            Ok(agent) => Route::Texts { episode, agent },
            Err(_) => Route::Refused(404, "no such agent"),
        },
        _ => Route::Refused(404, "there is /, /data.json and /metrics"),
    }
}

/// Length and time of the files that a part of the page is made from; equal while they are.
type Marks = Vec<Option<(u64, SystemTime)>>;

fn marks<const N: usize>(run: &Path, names: [&str; N]) -> Marks {
    let mark = |name: &str| {
        let meta = std::fs::metadata(run.join(name)).ok()?;
        Some((meta.len(), meta.modified().ok()?))
    };
    names.map(mark).to_vec()
}

/// The data of the page as it was last made.
struct Data {
    source: Source,
    looked: Option<Instant>,
    files: Marks,
    chosen: Option<Instant>,
    sealed: Marks,
    episodes: Episodes,
    json: String,
    tag: String,
}

impl Data {
    fn of(source: Source) -> Self {
        Self {
            source,
            looked: None,
            files: Marks::new(),
            chosen: None,
            sealed: Marks::new(),
            episodes: Episodes::default(),
            json: String::new(),
            tag: String::new(),
        }
    }

    /// Makes the data anew if the files have changed since, and if that was not just now.
    fn refresh(&mut self, now: Instant) -> Result<(), TrainerError> {
        let due = |last: Option<Instant>, every| last.is_none_or(|at| now.duration_since(at) >= every);
        if !due(self.looked, LOOK_EVERY) {
            return Ok(());
        }
        self.looked = Some(now);
        let run = self.source.run();
        let (files, sealed) = (marks(run, FILES), marks(run, [MANIFESTS]));
        let choose = sealed != self.sealed && due(self.chosen, CHOOSE_EVERY);
        if files == self.files && !choose {
            return Ok(());
        }
        if choose {
            self.episodes = self.source.episodes(&[])?;
            (self.sealed, self.chosen) = (sealed, Some(now));
        }
        let figures = self.source.figures()?;
        self.json = page::json(&Page { figures: &figures, episodes: &self.episodes })?;
        self.tag = format!("\"{}\"", &blake3::hash(self.json.as_bytes()).to_hex()[..24]);
        self.files = files;
        Ok(())
    }

    fn texts(&self, id: &str, agent: u32) -> Option<Result<String, TrainerError>> {
        let record = self.episodes.records.iter().find(|record| record.episode_id == id)?;
        Some(page::json(&episode::texts(record, agent, self.episodes.dialect.as_ref())?))
    }
}

/// The newest metrics of the run in Prometheus' text; `None` before the first step.
fn metrics_text(run: &Path) -> Option<String> {
    let newest = newest(run).ok()??;
    Some(exposition(&Marker::read(run).ok()?.run_id, &newest))
}

/// A server that is bound and not yet serving.
pub struct Watch {
    server: Server,
    data: Data,
}

impl Watch {
    /// Binds loopback: this port, or one that is free.
    ///
    /// # Errors
    /// [`TrainerError::Watch`] when the port is taken.
    pub fn bind(source: Source, port: Option<u16>) -> Result<Self, TrainerError> {
        let bind = |port: u16| Server::http(("127.0.0.1", port));
        let server = match port {
            Some(port) => bind(port),
            None => bind(PORT).or_else(|_| bind(0)),
        };
        let server = server.map_err(|e| {
            let port = port.map_or_else(|| "any".to_owned(), |port| port.to_string());
            TrainerError::Watch(format!("cannot listen on 127.0.0.1, port {port}: {e}"))
        })?;
        Ok(Self { server, data: Data::of(source) })
    }

    /// Where the page is.
    pub fn address(&self) -> String {
        format!("http://{}/", self.server.server_addr())
    }

    /// Serves for as long as the process lives.
    pub fn serve(mut self) {
        while let Ok(request) = self.server.recv() {
            let (status, kind, body, tag) = self.answer(&request);
            let mut response = Response::from_data(body).with_status_code(status);
            let fixed = [
                ("Content-Type", kind),
                ("Cache-Control", "no-cache"),
                ("X-Content-Type-Options", "nosniff"),
                ("X-Frame-Options", "DENY"),
                ("Cross-Origin-Resource-Policy", "same-origin"),
                ("Allow", "GET"),
            ];
            let tag = tag.as_deref().map(|tag| ("ETag", tag));
            for (name, value) in fixed.into_iter().chain(tag) {
                if let Ok(header) = Header::from_bytes(name, value) {
                    response.add_header(header);
                }
            }
            // Whoever went away before the answer needs none.
            let _ = request.respond(response);
        }
    }

    /// Status, content type, body and tag.
    fn answer(&mut self, request: &Request) -> (u16, &'static str, Vec<u8>, Option<String>) {
        const JSON: &str = "application/json";
        const TEXT: &str = "text/plain; charset=utf-8";
        let refuse = |status: u16, why: &str| (status, TEXT, format!("{why}\n").into_bytes(), None);
        let header = |name: &'static str| {
            let found = request.headers().iter().find(|h| h.field.equiv(name));
            found.map(|h| h.value.as_str().to_owned())
        };
        match route(request.method().as_str(), request.url(), header("Host").as_deref()) {
            Route::Refused(status, why) => refuse(status, why),
            Route::Page => (200, "text/html; charset=utf-8", page::html(&[], true).into_bytes(), None),
            Route::Metrics => match metrics_text(self.data.source.run()) {
                Some(text) => (200, "text/plain; version=0.0.4", text.into_bytes(), None),
                None => refuse(404, "no step is done yet"),
            },
            Route::Data => {
                if let Err(error) = self.data.refresh(Instant::now()) {
                    return refuse(500, &error.to_string());
                }
                let tag = Some(self.data.tag.clone());
                if header("If-None-Match") == tag {
                    (304, JSON, Vec::new(), tag)
                } else {
                    (200, JSON, self.data.json.clone().into_bytes(), tag)
                }
            }
            Route::Texts { episode, agent } => match self.data.texts(episode, agent) {
                Some(Ok(json)) => (200, JSON, json.into_bytes(), None),
                Some(Err(error)) => refuse(500, &error.to_string()),
                None => refuse(404, "that episode is no longer among the chosen ones"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_answered_and_only_reads() {
        let get = |url, host| route("GET", url, Some(host));
        for host in ["127.0.0.1", "127.0.0.1:7380", "localhost", "LocalHost:1", "[::1]:7380"] {
            assert_eq!(get("/", host), Route::Page, "{host}");
        }
        let hosts = [
            "",
            "evil.example",
            "evil.example:7380",
            "localhost.evil.example",
            "127.0.0.1.evil",
            "127.0.0.1:x",
        ];
        for host in hosts {
            assert!(matches!(get("/", host), Route::Refused(403, _)), "{host}");
        }
        assert!(matches!(route("GET", "/", None), Route::Refused(403, _)));
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "HEAD"] {
            assert!(matches!(route(method, "/", Some("localhost")), Route::Refused(405, _)), "{method}");
        }
        assert_eq!(get("/data.json?x=1", "localhost"), Route::Data);
        assert_eq!(get("/metrics", "localhost"), Route::Metrics);
        assert_eq!(get("/texts/e1/7", "localhost"), Route::Texts { episode: "e1", agent: 7 });
        for path in ["/texts/e1/-1", "/texts/e1", "/x", "//", "", "/texts/a/b/c"] {
            assert!(matches!(get(path, "localhost"), Route::Refused(404, _)), "{path}");
        }
    }

    #[test]
    fn the_files_are_not_looked_at_more_often_than_they_may_be() {
        let root = std::env::temp_dir().join(format!("parl-watch-{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        let mut data = Data::of(Source::awaited(&root));
        let begin = Instant::now();
        // A run that is not there yet is a page without figures.
        data.refresh(begin).unwrap();
        assert!(data.json.contains("\"run\":null") && !data.tag.is_empty());
        let before = data.tag.clone();
        std::fs::write(root.join("metrics.jsonl"), "{\"step\":0,\"a\":1}\n").unwrap();
        data.refresh(begin + LOOK_EVERY / 2).unwrap();
        assert_eq!(data.tag, before);
        data.refresh(begin + LOOK_EVERY).unwrap();
        assert_ne!(data.tag, before);
        std::fs::remove_dir_all(root).unwrap();
    }
}
