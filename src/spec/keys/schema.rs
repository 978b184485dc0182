//! The tables as a JSON schema, for editors.

use serde_json::{Map, Value, json};

use super::{Class, Key, Shape, TOP};

/// The schema of a services file.
pub(in super::super) fn schema() -> Value {
    let mut schema = object(TOP);
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("services.yaml");
    schema["required"] = json!(["services"]);
    schema
}

fn object(keys: &[Key]) -> Value {
    let mut properties = Map::new();
    for key in keys {
        // Shown by editors as it is told by `config`.
        let value = if key.class == Class::Rejected {
            json!({ "not": {}, "description": super::refusal(key) })
        } else {
            let mut value = shape(key.shape);
            value["description"] = json!(key.text);
            value
        };
        properties.insert(key.name.to_owned(), value);
    }
    json!({
        "type": ["object", "null"],
        "properties": properties,
        "patternProperties": { "^x-": {} },
        "additionalProperties": false,
    })
}

fn shape(shape: Shape) -> Value {
    // A variable is a text until it is replaced, and nothing counts as left out.
    let scalar = json!({ "type": ["string", "number", "boolean", "null"] });
    match shape {
        Shape::Any => json!({}),
        Shape::Text => scalar,
        Shape::Bool => json!({ "type": ["boolean", "string", "null"] }),
        Shape::Number => json!({ "type": ["number", "string", "null"] }),
        Shape::Choice(choices) => json!({
            "anyOf": [
                { "enum": choices },
                { "type": ["string", "null"], "pattern": "^$|\\$" },
            ],
        }),
        Shape::List => json!({ "type": ["array", "null"], "items": scalar }),
        Shape::Texts => json!({
            "type": ["string", "number", "boolean", "array", "null"], "items": scalar,
        }),
        Shape::Pairs => json!({
            "type": ["array", "object", "null"], "items": scalar, "additionalProperties": scalar,
        }),
        Shape::Items => json!({ "type": ["array", "null"] }),
        Shape::Object(keys) => object(keys),
        Shape::Named(keys) => json!({
            "type": ["object", "null"], "additionalProperties": object(keys),
        }),
    }
}
