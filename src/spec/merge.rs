//! Compose's rules for two files that say something of the same key: scalars are replaced, mappings are merged, lists
//! are joined; some lists hold each thing once, and commands are replaced as a whole.

use super::forms::{self, Form};
use super::raw::{Entry, Node, Value};
use super::tag::{Tag, Tagged};
use super::{Position, tree};

/// Two files that cannot be merged: a key is of different kinds in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub(crate) at: Position,
    pub(crate) path: String,
    pub(crate) message: String,
}

/// `over` on top of `base`, both from the top of the file.
pub(crate) fn files(base: Node, over: Node, conflicts: &mut Vec<Conflict>) -> Node {
    merge(base, over, &mut Vec::new(), conflicts)
}

/// `over` on top of `base`, both the service `name`.
pub(crate) fn service(name: &str, base: Node, over: Node, conflicts: &mut Vec<Conflict>) -> Node {
    merge(base, over, &mut vec!["services".to_owned(), name.to_owned()], conflicts)
}

fn merge(base: Node, over: Node, path: &mut Vec<String>, conflicts: &mut Vec<Conflict>) -> Node {
    let borrowed: Vec<&str> = path.iter().map(String::as_str).collect();
    let form = forms::of(&borrowed);
    // A variable that is named without a value takes it from outside, whatever an earlier file gave it.
    let is_variable = tree::matches("services.*.environment.*", &borrowed);
    if over.value == Value::Null && !is_variable {
        return base;
    }
    if base.value == Value::Null || matches!(form, Some(Form::Words | Form::Test)) {
        return over;
    }
    let (base, over) = match form {
        Some(form) => (form.long(base), form.long(over)),
        None => (base, over),
    };
    if form == Some(Form::Logging) {
        let driver = |node: &Node| node.get("driver").and_then(Node::scalar);
        if driver(&over)
            .is_some_and(|driver_of_over| driver(&base).is_some_and(|d| d != driver_of_over))
        {
            return over;
        }
    }
    match (base.value, over.value) {
        (Value::Map(known), Value::Map(new)) => {
            let entries = maps(known, new, path, conflicts);
            Node { value: Value::Map(entries), at: base.at }
        }
        (Value::List(known), Value::List(new)) => {
            Node { value: Value::List(lists(form, known, new)), at: base.at }
        }
        // A limit can be a number in one file and a mapping in another.
        (Value::Map(_), new @ (Value::Number(_) | Value::Text(_)))
            if tree::matches("services.*.ulimits.*", &borrowed) =>
        {
            Node { value: new, at: over.at }
        }
        (known @ (Value::Map(_) | Value::List(_)), new) => {
            conflicts.push(Conflict {
                at: over.at,
                path: tree::shown(path),
                message: format!(
                    "{} cannot be merged with {} of an earlier file",
                    new.kind(),
                    known.kind()
                ),
            });
            Node { value: known, at: base.at }
        }
        (_, new) => Node { value: new, at: over.at },
    }
}

fn maps(
    mut known: Vec<Entry>,
    new: Vec<Entry>,
    path: &mut Vec<String>,
    conflicts: &mut Vec<Conflict>,
) -> Vec<Entry> {
    // By place, since a mapping may have many thousand keys.
    let mut places: std::collections::HashMap<String, usize> =
        known.iter().enumerate().map(|(n, entry)| (entry.key.clone(), n)).collect();
    for entry in new {
        match places.get(&entry.key) {
            Some(&place) => {
                let at = known[place].at;
                let base =
                    std::mem::replace(&mut known[place].value, Node { value: Value::Null, at });
                path.push(entry.key);
                known[place].value = merge(base, entry.value, path, conflicts);
                path.pop();
            }
            None => {
                places.insert(entry.key.clone(), known.len());
                known.push(entry);
            }
        }
    }
    known
}

fn lists(form: Option<Form>, mut known: Vec<Node>, new: Vec<Node>) -> Vec<Node> {
    let identity = |item: &Node| form.and_then(|form| form.identity(item));
    let mut places: std::collections::HashMap<String, usize> =
        known.iter().enumerate().filter_map(|(n, item)| Some((identity(item)?, n))).collect();
    for item in new {
        match identity(&item) {
            Some(identity) => match places.get(&identity) {
                Some(&place) => known[place] = item,
                None => {
                    places.insert(identity, known.len());
                    known.push(item);
                }
            },
            None => known.push(item),
        }
    }
    known
}

/// Makes room for what `tagged` keys say: they go from `base`, and those that are reset from `over` too.
pub(crate) fn clear(tagged: &[Tagged], mut base: Option<&mut Node>, over: &mut Node) {
    for Tagged { path, tag } in tagged {
        if let Some(base) = base.as_deref_mut() {
            remove(base, path);
        }
        if *tag == Tag::Reset {
            remove(over, path);
        }
    }
}

/// As [`clear`], for the service `name` of a file, on top of the one that it extends.
pub(crate) fn clear_service(name: &str, tagged: &[Tagged], base: &mut Node) {
    for Tagged { path, .. } in tagged {
        if let [services, service, rest @ ..] = path.as_slice()
            && services == "services"
            && service == name
        {
            remove_below(base, rest, &mut vec!["services", name]);
        }
    }
}

fn remove(root: &mut Node, path: &[String]) {
    remove_below(root, path, &mut Vec::new());
}

fn remove_below<'a>(node: &mut Node, path: &'a [String], above: &mut Vec<&'a str>) {
    let Some((key, rest)) = path.split_first() else { return };
    if let Some(form) = forms::of(above)
        && node.items().is_some()
    {
        let at = node.at;
        let list = std::mem::replace(node, Node { value: Value::Null, at });
        *node = form.long(list);
    }
    if rest.is_empty() {
        node.remove(key);
    } else if let Some(child) = node.get_mut(key) {
        above.push(key);
        remove_below(child, rest, above);
        above.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{emit, raw, tag};
    use super::*;

    fn merged(base: &str, over: &str) -> Result<String, Vec<Conflict>> {
        let read =
            |text: &str| raw::read(text, 0).unwrap_or_else(|error| panic!("{}", error.message));
        let mut base = read(base);
        let (text, marks) = tag::take(over, 0);
        let mut over = read(&text);
        let tagged = tag::locate(&marks, &over).unwrap();
        clear(&tagged, Some(&mut base), &mut over);
        let mut conflicts = Vec::new();
        let node = files(base, over, &mut conflicts);
        if conflicts.is_empty() { Ok(emit::json(&node).to_string()) } else { Err(conflicts) }
    }

    /// Two texts below one service, and what becomes of them.
    #[test]
    fn each_kind_of_key_is_merged_by_its_rule() {
        for (base, over, expected) in [
            ("image: a, user: u", "image: b", r#"{"image":"b","user":"u"}"#),
            ("user: u", "user: ", r#"{"user":"u"}"#),
            ("command: a b", "command: [c]", r#"{"command":["c"]}"#),
            ("entrypoint: [a, b]", "entrypoint: c", r#"{"entrypoint":"c"}"#),
            (
                "environment: [A=1, B=2]",
                "environment: {B: 3, C: }",
                r#"{"environment":{"A":"1","B":"3","C":null}}"#,
            ),
            ("environment: {A: 1}", "environment: [A]", r#"{"environment":{"A":null}}"#),
            ("labels: [a=1]", "labels: {a: 2, b: 3}", r#"{"labels":{"a":"2","b":"3"}}"#),
            (
                "depends_on: [a]",
                "depends_on: {a: {condition: service_healthy}}",
                r#"{"depends_on":{"a":{"condition":"service_healthy","required":true}}}"#,
            ),
            ("dns: 1.1.1.1", "dns: [1.1.1.1, 8.8.8.8]", r#"{"dns":["1.1.1.1","8.8.8.8"]}"#),
            ("expose: [80]", "expose: ['80', 81]", r#"{"expose":["80","81"]}"#),
            ("x-l: [1]", "x-l: [1]", r#"{"x-l":[1,1]}"#),
            (
                "logging: {driver: a, options: {x: 1}}",
                "logging: {options: {y: 2}}",
                r#"{"logging":{"driver":"a","options":{"x":1,"y":2}}}"#,
            ),
            (
                "logging: {driver: a, options: {x: 1}}",
                "logging: {driver: b}",
                r#"{"logging":{"driver":"b"}}"#,
            ),
            (
                "healthcheck: {test: a, retries: 1}",
                "healthcheck: {test: [CMD, b]}",
                r#"{"healthcheck":{"retries":1,"test":["CMD","b"]}}"#,
            ),
            (
                "networks: [a]",
                "networks: {a: {aliases: [x]}, b: }",
                r#"{"networks":{"a":{"aliases":["x"]},"b":null}}"#,
            ),
            (
                "ulimits: {nofile: {soft: 1, hard: 2}}",
                "ulimits: {nofile: 3}",
                r#"{"ulimits":{"nofile":3}}"#,
            ),
            ("user: u, tty: true", "user: !reset null", r#"{"tty":true}"#),
            (
                "environment: [A=1, B=2]",
                "environment: {A: !reset null}",
                r#"{"environment":{"B":"2"}}"#,
            ),
            ("expose: [80]", "expose: !override [81]", r#"{"expose":[81]}"#),
        ] {
            let wrap = |text: &str| format!("services: {{web: {{{text}}}}}");
            let expected = format!(r#"{{"services":{{"web":{expected}}}}}"#);
            assert_eq!(merged(&wrap(base), &wrap(over)), Ok(expected), "{base} / {over}");
        }
    }

    #[test]
    fn what_is_mounted_or_published_counts_once() {
        let base = "services: {web: {volumes: ['/a:/x', '/b:/y'], ports: ['80:80', '81:81']}}";
        let over = "services: {web: {volumes: [{type: bind, source: /c, target: /x}], ports: ['80:80/tcp', '80:80/udp']}}";
        let merged = merged(base, over).unwrap();
        let tree: serde_json::Value = serde_json::from_str(&merged).unwrap();
        let web = &tree["services"]["web"];
        assert_eq!(web["volumes"].as_array().unwrap().len(), 2);
        assert_eq!(web["volumes"][0]["source"], "/c");
        assert_eq!(web["ports"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn kinds_that_do_not_fit_are_a_conflict() {
        let conflicts =
            merged("services: {web: {x-a: [1]}}", "services:\n  web:\n    x-a: {b: 1}\n")
                .unwrap_err();
        assert_eq!((conflicts[0].path.as_str(), conflicts[0].at.line), ("web.x-a", 3));
    }
}
