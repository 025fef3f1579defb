//! The page's HTML. Data stands in it as JSON alone, in which no `<` is left: whatever a model wrote can neither end
//! the element that holds it nor begin another. The program on the page makes text nodes of it, never markup, and
//! the page's policy lets no other program run and nothing be fetched.

use serde::Serialize;

use crate::error::TrainerError;

const TEMPLATE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const PROGRAM: [&str; 6] = [
    include_str!("page/dom.js"),
    include_str!("page/chart.js"),
    include_str!("page/summary.js"),
    include_str!("page/detail.js"),
    include_str!("page/timeline.js"),
    include_str!("page/start.js"),
];

/// JSON that may stand inside HTML.
///
/// # Errors
/// [`TrainerError::Internal`] for what JSON cannot say.
pub fn json(value: &impl Serialize) -> Result<String, TrainerError> {
    let text = serde_json::to_string(value).map_err(|e| TrainerError::Internal(e.to_string()))?;
    // Outside of strings JSON has no `<`.
    Ok(text.replace('<', "\\u003c"))
}

/// A block of data with the name by which the program finds it.
pub struct Block {
    /// `data`, or `texts-EPISODE-AGENT` (both as numbers in the order of the page).
    pub name: String,
    /// From [`json`].
    pub json: String,
}

/// The page around its data. A live page has no blocks: its program asks the server for them, and may.
pub fn html(blocks: &[Block], live: bool) -> String {
    // Whoever wrote a part of the data cannot know the hash of the whole.
    let mut hasher = blake3::Hasher::new();
    for block in blocks {
        hasher.update(block.json.as_bytes());
    }
    let nonce = hasher.finalize().to_hex()[..32].to_owned();
    let connect = if live { "connect-src 'self'; " } else { "" };
    let mut page = String::with_capacity(blocks.iter().map(|b| b.json.len() + 100).sum::<usize>() + 100_000);
    let mut rest = TEMPLATE;
    while let Some((before, after)) = rest.split_once("{{") {
        let (mark, after) = after.split_once("}}").unwrap_or((after, ""));
        page.push_str(before);
        match mark {
            "nonce" => page.push_str(&nonce),
            "connect" => page.push_str(connect),
            "style" => page.push_str(STYLE),
            "program" => PROGRAM.iter().for_each(|part| page.push_str(part)),
            _ => {
                for Block { name, json } in blocks {
                    page.push_str("<script type=\"application/json\" id=\"");
                    page.push_str(name);
                    page.push_str("\">");
                    page.push_str(json);
                    page.push_str("</script>\n");
                }
            }
        }
        rest = after;
    }
    page.push_str(rest);
    page
}
