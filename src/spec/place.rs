//! Relative paths in a file, made absolute: once files of several folders are merged, nobody could tell what they
//! are relative to.

use std::path::Path;

use super::field::normalize;
use super::raw::{Node, Value};
use super::tree;

/// Keys that hold a path, or a list of them.
const PATHS: [&str; 8] = [
    "services.*.env_file",
    "services.*.env_file.path",
    "services.*.label_file",
    "services.*.extends.file",
    "services.*.build.context",
    "services.*.develop.watch.path",
    "configs.*.file",
    "secrets.*.file",
];

/// Makes the paths below `node` absolute; they are relative to `base`. Items of a list have no part in a path.
pub(crate) fn resolve(node: &mut Node, base: &Path) {
    // Only what is UTF-8 can stand in a text; the validation joins the rest.
    if let Some(base) = base.to_str() {
        walk(node, &mut Vec::new(), base);
    }
}

fn walk(node: &mut Node, path: &mut Vec<String>, base: &str) {
    match &mut node.value {
        Value::Map(entries) => {
            for entry in entries {
                path.push(entry.key.clone());
                walk(&mut entry.value, path, base);
                path.pop();
            }
            source(node, path, base);
        }
        Value::List(items) => items.iter_mut().for_each(|item| walk(item, path, base)),
        Value::Text(text) => {
            let borrowed: Vec<&str> = path.iter().map(String::as_str).collect();
            let is = |pattern: &str| tree::matches(pattern, &borrowed);
            if PATHS.iter().any(|pattern| is(pattern)) {
                // `-` is standard input for some keys, a URL a context of a build, and nothing is nothing.
                if !text.is_empty() && !text.starts_with(['/', '$', '~']) && !text.contains("://") {
                    *text = joined(base, text);
                }
            } else if is("services.*.volumes") && text.starts_with('.') {
                if let Some((source, rest)) = text.split_once(':') {
                    *text = format!("{}:{rest}", joined(base, source));
                }
            } else if is("services.*.image") {
                layout(text, base);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The source of a volume in the long form.
fn source(node: &mut Node, path: &[String], base: &str) {
    let borrowed: Vec<&str> = path.iter().map(String::as_str).collect();
    if !tree::matches("services.*.volumes", &borrowed) {
        return;
    }
    let kind = node.get("type").and_then(Node::scalar);
    let Some(Node { value: Value::Text(source), .. }) = node.get_mut("source") else { return };
    match kind.as_deref() {
        Some("bind") if !source.is_empty() && !source.starts_with(['/', '$', '~']) => {
            *source = joined(base, source);
        }
        Some("image") => layout(source, base),
        _ => {}
    }
}

/// The folder of an image that is in one.
fn layout(image: &mut String, base: &str) {
    if let Some(layout) = image.strip_prefix("oci:")
        && !layout.starts_with(['/', '$'])
    {
        // The tag behind the path is left alone by joining texts.
        *image = format!("oci:{}", joined(base, layout));
    }
}

/// `text` below `base`. A colon, which would end a short form, cannot be hidden; the validation says so.
pub(crate) fn joined(base: &str, text: &str) -> String {
    let path = normalize(&Path::new(base).join(text));
    path.to_str().unwrap_or(text).to_owned()
}
