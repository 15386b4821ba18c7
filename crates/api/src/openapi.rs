//! The OpenAPI document, made from the endpoint table.

use model::Role;
use serde_json::Value;
use serde_json::json;

use crate::ApiError;
use crate::endpoint::Access;
use crate::endpoint::Info;
use crate::endpoint::ReplyKind;
use crate::endpoint::Schemas;
use crate::endpoint::TABLE;
use utoipa::PartialSchema;
use utoipa::ToSchema;

/// The document as pretty JSON with a final line feed, the same at every call.
pub fn document() -> String {
    let mut paths = serde_json::Map::new();
    let mut schemas = serde_json::Map::new();
    schemas.insert("ApiError".to_owned(), to_value(&ApiError::schema()));
    let mut refers = Vec::new();
    ApiError::schemas(&mut refers);
    for info in TABLE {
        let parts = (info.schemas)();
        let entry = paths.entry(info.path).or_insert_with(|| json!({}));
        entry[info.method.as_str().to_ascii_lowercase()] = operation(info, &parts);
        refers.extend(parts.refers);
    }
    for (name, schema) in refers {
        schemas.insert(name, to_value(&schema));
    }
    schemas.remove("Nothing");

    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Muster",
            "description": "Virtual machines that keep running.",
            "version": crate::endpoint::API_VERSION,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    });
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

fn operation(info: &Info, parts: &Schemas) -> Value {
    let mut parameters: Vec<Value> = info
        .parameters()
        .map(|name| {
            json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })
        })
        .collect();
    if let Some(query) = &parts.query {
        parameters.extend(query_parameters(&to_value(query)));
    }
    if info.takes_stale() {
        parameters.push(json!({
            "name": "stale",
            "in": "query",
            "description": "Answer as this node knows it: perhaps old, but also without a majority",
            "required": false,
            "schema": { "type": "boolean" },
        }));
    }
    let mut operation = json!({
        "operationId": info.id,
        "summary": info.summary.trim(),
        "tags": [info.path.split('/').nth(2).unwrap_or_default()],
        "parameters": parameters,
        "responses": {
            "200": success(info, parts),
            "default": {
                "description": "An error with its next step",
                "content": { "application/json": {
                    "schema": { "$ref": "#/components/schemas/ApiError" } } },
            },
        },
    });
    if let Some(body) = &parts.body {
        operation["requestBody"] = json!({
            "required": true,
            "content": { "application/json": { "schema": to_value(body) } },
        });
    }
    match info.access {
        Access::Anyone => operation["security"] = json!([]),
        Access::Needs(role) => {
            operation["security"] = json!([{ "token": [] }]);
            operation["x-role"] = role_word(role);
        }
    }
    operation
}

fn role_word(role: Role) -> Value {
    Value::String(role.as_str().to_owned())
}

fn success(info: &Info, parts: &Schemas) -> Value {
    let schema = parts.reply.as_ref().map(to_value).unwrap_or_else(|| json!({}));
    match info.reply {
        ReplyKind::Json => json!({
            "description": "Done",
            "content": { "application/json": { "schema": schema } },
        }),
        ReplyKind::EventStream => json!({
            "description": "Events as they happen",
            "content": { "text/event-stream": { "schema": schema } },
        }),
        ReplyKind::Png => json!({
            "description": "A picture",
            "content": { "image/png": { "schema": { "type": "string", "format": "binary" } } },
        }),
        ReplyKind::Metrics => json!({
            "description": "Figures",
            "content": { "application/openmetrics-text": { "schema": { "type": "string" } } },
        }),
        ReplyKind::WebSocket => json!({
            "description": "The connection becomes a WebSocket (send the upgrade headers)",
        }),
    }
}

fn query_parameters(schema: &Value) -> Vec<Value> {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let Some(properties) = schema["properties"].as_object() else { return Vec::new() };
    properties
        .iter()
        .map(|(name, property)| {
            let mut property = property.clone();
            let description = property
                .as_object_mut()
                .and_then(|property| property.remove("description"))
                .unwrap_or_default();
            json!({
                "name": name,
                "in": "query",
                "description": description,
                "required": required.iter().any(|other| other == name),
                "schema": property,
            })
        })
        .collect()
}

fn to_value(schema: &impl serde::Serialize) -> Value {
    serde_json::to_value(schema).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::document;

    /// The committed document; written anew by `cargo xtask fix`.
    const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/muster-v1.json");

    #[test]
    fn the_committed_document_is_the_one_that_the_code_makes() {
        let fresh = document();
        if std::env::var_os("MUSTER_WRITE_OPENAPI").is_some() {
            std::fs::write(COMMITTED, &fresh).unwrap();
        }
        let committed = std::fs::read_to_string(COMMITTED).unwrap_or_default();
        assert!(
            committed == fresh,
            "openapi/muster-v1.json is stale; write it anew with: cargo xtask fix"
        );
    }

    /// Two types of one name would show as one of them, wherever either is meant.
    #[test]
    fn no_two_schemas_share_a_name() {
        let mut seen = std::collections::BTreeMap::new();
        for info in crate::endpoint::TABLE {
            for (name, schema) in (info.schemas)().refers {
                let schema = super::to_value(&schema);
                let before = seen.entry(name.clone()).or_insert_with(|| schema.clone());
                assert_eq!(
                    *before, schema,
                    "{name} means two things; give one #[schema(as = ...)]"
                );
            }
        }
    }

    #[test]
    fn every_reference_in_the_document_leads_somewhere() {
        let document: serde_json::Value = serde_json::from_str(&document()).unwrap();
        let text = document.to_string();
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(
                !document["components"]["schemas"][name].is_null(),
                "{name} is referred to and missing"
            );
        }
    }
}
