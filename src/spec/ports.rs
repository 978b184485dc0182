//! Published ports in their long form: `[HOST_IP:][PUBLISHED:]TARGET[/PROTOCOL]`, each side a port or a range.

use super::raw::{Node, Value};

/// Most ports that one range is written out as; more stay as they are written.
const MAX_RANGE: u16 = 4096;

/// The long forms of one item; the item itself if it is none of ours to understand.
pub(super) fn long(item: &Node) -> Vec<Node> {
    let (Value::Text(text) | Value::Number(text)) = &item.value else { return vec![item.clone()] };
    forms(text, item).unwrap_or_else(|| vec![item.clone()])
}

fn forms(text: &str, item: &Node) -> Option<Vec<Node>> {
    let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !matches!(protocol, "tcp" | "udp" | "sctp") {
        return None;
    }
    let (rest, target) = match rest.rsplit_once(':') {
        Some((rest, target)) => (Some(rest), target),
        None => (None, rest),
    };
    let (host_ip, published) = match rest {
        None => (None, None),
        Some(rest) => match rest.rsplit_once(':') {
            // An address of version 6 has colons of its own, so it stands in brackets.
            Some((ip, published)) => {
                let ip = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
                (Some(ip), Some(published).filter(|published| !published.is_empty()))
            }
            None => (None, Some(rest)),
        },
    };
    let targets = range(target)?;
    let published = match published {
        Some(published) => Some((published, range(published)?)),
        None => None,
    };
    let count = targets.1 - targets.0;
    if count >= MAX_RANGE {
        return None;
    }
    let at = item.at;
    let mut made = Vec::new();
    for offset in 0..=count {
        let text = |text: &str| Node::text(text, at);
        let number = Node { value: Value::Number((targets.0 + offset).to_string()), at };
        let mut fields = vec![("mode", text("ingress"))];
        if let Some(ip) = host_ip {
            fields.push(("host_ip", text(ip)));
        }
        fields.push(("target", number));
        match published {
            None => {}
            // One target has any of the published ports.
            Some((written, _)) if count == 0 => fields.push(("published", text(written))),
            Some((_, (first, last))) if last - first == count => {
                fields.push(("published", text(&(first + offset).to_string())));
            }
            Some(_) => return None,
        }
        fields.push(("protocol", text(protocol)));
        made.push(Node::map(fields, at));
    }
    Some(made)
}

pub(super) fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
    (first <= last && first > 0).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::super::Position;
    use super::*;

    #[test]
    fn ports_are_written_out() {
        let shown = |text: &str| -> String {
            let item = Node::text(text, Position { file: 0, line: 1, column: 1 });
            let field =
                |node: &Node, key: &str| node.get(key).and_then(Node::scalar).unwrap_or_default();
            let each = |node: &Node| {
                ["host_ip", "published", "target", "protocol"].map(|key| field(node, key)).join("|")
            };
            long(&item).iter().map(each).collect::<Vec<_>>().join(" ")
        };
        for (text, expected) in [
            ("80", "||80|tcp"),
            ("8080:80", "|8080|80|tcp"),
            ("53:53/udp", "|53|53|udp"),
            ("127.0.0.1:8080:80", "127.0.0.1|8080|80|tcp"),
            ("127.0.0.1::80", "127.0.0.1||80|tcp"),
            ("[::1]:8080:80", "::1|8080|80|tcp"),
            ("8000-8001:80-81", "|8000|80|tcp |8001|81|tcp"),
            ("8000-8009:80", "|8000-8009|80|tcp"),
            ("80-81", "||80|tcp ||81|tcp"),
            ("80-70", "|||"),
            ("x:80", "|||"),
            ("1-65535:1-65535", "|||"),
            ("8000-8002:80-81", "|||"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }
}
