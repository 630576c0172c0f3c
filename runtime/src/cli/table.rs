//! What a person sees: tables for lists, a block for one thing.
//!
//! Names, messages and logs come from other people's models: no control character of theirs reaches the terminal.

use std::time::{SystemTime, UNIX_EPOCH};

use comfy_table::{Row, Table, presets};

use crate::audit::Record;
use crate::usage::summary::{By, Summary};

use super::wire::{
    Endpoint, EndpointConfig, EndpointState, Graph, ModelVersion, RegisteredModel, ServedEntity, Tag, Tags,
};

/// Labels, one a line.
pub(super) fn tags(tags: &Tags) -> String {
    let line = |tag: &Tag| match &tag.value {
        Some(value) => printable(&format!("{}={value}", tag.key)),
        None => printable(&tag.key),
    };
    match tags.tags.as_slice() {
        [] => "no tags".to_owned(),
        tags => tags.iter().map(line).collect::<Vec<_>>().join("\n"),
    }
}

/// Endpoints, one a row; of several served entities, one a line.
pub(super) fn endpoints(endpoints: &[Endpoint]) -> String {
    if endpoints.is_empty() {
        return "no endpoints: create one with `tessera endpoint create`".to_owned();
    }
    let mut table = new_table(&["NAME", "STATE", "SERVED ENTITY", "TRAFFIC", "BACKEND"]);
    for endpoint in endpoints {
        let config = endpoint.config.as_ref().or(endpoint.pending_config.as_ref());
        let column = |cell: fn(&EndpointConfig, &ServedEntity) -> String| match config {
            Some(config) => lines(config.served_entities.iter().map(|entity| cell(config, entity))),
            None => "-".to_owned(),
        };
        add_row(
            &mut table,
            [
                endpoint.name.clone(),
                state(&endpoint.state),
                column(|_, entity| version(entity)),
                column(traffic),
                column(|_, entity| backends(entity)),
            ],
        );
    }
    text(&table)
}

/// One endpoint in full.
pub(super) fn endpoint(endpoint: &Endpoint) -> String {
    let mut block = Block(format!("{}\n", printable(&endpoint.name)));
    block.line(1, "state", &state(&endpoint.state));
    block.line(1, "id", endpoint.id.as_deref().unwrap_or_default());
    let by = endpoint.creator.as_deref().map_or(String::new(), |creator| format!(" by {creator}"));
    block.line(1, "created", &format!("{}{by}", age(endpoint.creation_timestamp)));
    block.line(1, "updated", &age(endpoint.last_updated_timestamp));
    let parts = [("config", &endpoint.config), ("pending config", &endpoint.pending_config)];
    for (title, config) in parts.into_iter().filter_map(|(title, config)| Some((title, config.as_ref()?))) {
        block.line(1, title, &config.config_version.map_or(String::new(), |version| format!("version {version}")));
        for entity in &config.served_entities {
            served_entity(&mut block, config, entity);
        }
    }
    block.line(1, "last error", &endpoint.failure());
    block.0
}

fn served_entity(block: &mut Block, config: &EndpointConfig, entity: &ServedEntity) {
    let facts = [version(entity), traffic(config, entity), entity.state.deployment.clone()];
    let facts: Vec<_> = facts.into_iter().filter(|fact| !fact.is_empty()).collect();
    block.line(2, &entity.name, &facts.join("  "));
    block.line(3, "message", &entity.state.deployment_state_message);
    for graph in &entity.graphs {
        let target = graph.target.as_deref().map_or(String::new(), |target| format!(" on {target}"));
        let threads = graph.intra_op_threads.map_or(String::new(), |threads| match threads {
            1 => ", runs with 1 thread".to_owned(),
            _ => format!(", runs with {threads} threads"),
        });
        block.line(3, "graph", &format!("{}  {}{target}{threads}", graph.name, backend(graph)));
    }
    if let Some(in_memory) = entity.in_memory {
        block.line(3, "memory", if in_memory { "ready to run" } else { "scaled to zero" });
    }
    if let Some(cold) = &entity.last_cold_start {
        let ms = |us: u64| us as f64 / 1e3;
        let (component, graphs) = (ms(cold.component_us), ms(cold.graphs_us));
        let parts = format!("from rung '{}': component {component:.1} ms, graphs {graphs:.1} ms", cold.rung);
        block.line(3, "last cold start", &parts);
    }
}

/// Registered models, one a row.
pub(super) fn models(models: &[RegisteredModel]) -> String {
    if models.is_empty() {
        return "no registered models: register one with `tessera model push`".to_owned();
    }
    let mut table = new_table(&["NAME", "UPDATED", "DESCRIPTION"]);
    for model in models {
        let description = model.description.clone().unwrap_or_default();
        add_row(&mut table, [model.name.clone(), age(model.last_updated_timestamp), description]);
    }
    text(&table)
}

/// One registered model and its versions.
pub(super) fn model(model: &RegisteredModel, versions: &[ModelVersion]) -> String {
    let mut block = Block(format!("{}\n", printable(&model.name)));
    block.line(1, "description", model.description.as_deref().unwrap_or_default());
    block.line(1, "updated", &age(model.last_updated_timestamp));
    for tag in &model.tags {
        block.line(1, "tag", &format!("{} = {}", tag.key, tag.value.as_deref().unwrap_or_default()));
    }
    if versions.is_empty() {
        block.line(1, "versions", "none");
        return block.0;
    }
    let mut table = new_table(&["VERSION", "STATUS", "ALIASES", "CREATED", "DESCRIPTION"]);
    for version in versions {
        let named = model.aliases.iter().filter(|alias| alias.version == version.version);
        let aliases = named.map(|alias| alias.alias.as_str()).collect::<Vec<_>>().join(", ");
        // Why it cannot be served says more than what somebody wrote when it was made.
        let description = match version.status_message.as_str() {
            "" => version.description.clone().unwrap_or_default(),
            message => message.to_owned(),
        };
        let row =
            [version.version.clone(), version.status.clone(), aliases, age(version.creation_timestamp), description];
        add_row(&mut table, row);
    }
    format!("{}\n{}", block.0, text(&table))
}

/// Summaries of usage, one a row.
pub(super) fn usage(summaries: &[Summary], by: By) -> String {
    if summaries.is_empty() {
        return "no requests were recorded".to_owned();
    }
    let key = by.to_string().to_uppercase();
    let mut table = new_table(&[&key, "REQUESTS", "ERRORS", "TOKENS IN", "TOKENS OUT", "P50 MS", "P99 MS"]);
    for summary in summaries {
        let ms = |ms: f64| format!("{ms:.1}");
        let Summary { requests, errors, input_tokens, output_tokens, .. } = summary;
        let counts = [requests, errors, input_tokens, output_tokens].map(u64::to_string);
        let [requests, errors, input, output] = counts;
        let key = summary.key.clone();
        add_row(&mut table, [key, requests, errors, input, output, ms(summary.p50_ms), ms(summary.p99_ms)]);
    }
    text(&table)
}

/// Records of the audit log, one a row.
pub(super) fn audit_records(records: &[Record]) -> String {
    if records.is_empty() {
        return "no records\n".to_owned();
    }
    let mut table = new_table(&["TIME", "ACTION", "OBJECT", "PRINCIPAL", "SOURCE", "OUTCOME", "COUNT"]);
    for Record { time, event, count, .. } in records {
        let principal = event.principal.as_ref().map(|who| who.name.clone()).unwrap_or_default();
        let outcome = match (event.status, &event.error_code) {
            (0, _) => String::new(),
            (status, Some(code)) => format!("{status} {code}"),
            (status, None) => status.to_string(),
        };
        let [object, source] = [&event.object, &event.source].map(|text| text.clone().unwrap_or_default());
        let count = if *count == 1 { String::new() } else { count.to_string() };
        add_row(&mut table, [time.clone(), event.action.clone(), object, principal, source, outcome, count]);
    }
    text(&table)
}

/// Things that are all alike, one a row; `none` stands for no rows.
pub(super) fn rows<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>, none: &str) -> String {
    let mut table = new_table(&header);
    rows.for_each(|row| add_row(&mut table, row));
    if table.is_empty() { none.to_owned() } else { text(&table) }
}

/// Facts about one thing, a line or more each.
pub(super) fn facts(title: &str, rows: &[(&str, String)]) -> String {
    let mut block = Block(format!("{}\n", printable(title)));
    for (label, value) in rows {
        block.line(1, label, value);
    }
    block.0
}

/// A size for people, in the decimal units of file managers.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1000)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

/// `text` without what could drive a terminal.
pub(super) fn printable(text: &str) -> String {
    let safe = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.replace("\r\n", "\n").chars().map(safe).collect()
}

/// What the three fields of a state say together.
fn state(state: &EndpointState) -> String {
    let ready = match state.suspend.as_deref() {
        Some("STOPPED") => "STOPPED",
        _ => state.ready.as_str(),
    };
    match state.config_update.as_str() {
        "NOT_UPDATING" | "" => ready.to_owned(),
        "IN_PROGRESS" => format!("{ready}, updating"),
        "UPDATE_FAILED" => format!("{ready}, update failed"),
        "UPDATE_CANCELED" => format!("{ready}, update cancelled"),
        other => format!("{ready}, {other}"),
    }
}

fn version(entity: &ServedEntity) -> String {
    match (&entity.entity_name, &entity.entity_version) {
        (Some(name), Some(version)) => format!("{name} v{version}"),
        _ => entity.entity_name.as_ref().unwrap_or(&entity.name).clone(),
    }
}

fn traffic(config: &EndpointConfig, entity: &ServedEntity) -> String {
    config.percentage(entity).map_or(String::new(), |percentage| format!("{percentage} %"))
}

/// The backends of an entity's graphs, each once.
fn backends(entity: &ServedEntity) -> String {
    let mut names: Vec<String> = entity.graphs.iter().map(backend).collect();
    names.dedup();
    names.join(", ")
}

fn backend(graph: &Graph) -> String {
    match &graph.backend_version {
        Some(version) => format!("{} {version}", graph.backend),
        None => graph.backend.clone(),
    }
}

/// How long ago, in the largest unit that gives at least one.
pub(super) fn age(timestamp_ms: Option<u64>) -> String {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
    let Some(seconds) = timestamp_ms.map(|then_ms| now_ms.saturating_sub(then_ms) / 1000) else {
        return String::new();
    };
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// Lines of `label  value`, indented; a line without a value is left out.
struct Block(String);

impl Block {
    fn line(&mut self, depth: usize, label: &str, value: &str) {
        if value.trim().is_empty() {
            return;
        }
        let label = format!("{:indent$}{}", "", printable(label), indent = depth * 2);
        let value = printable(value).replace('\n', &format!("\n{:24}", ""));
        self.0.push_str(&format!("{label:22}  {value}\n"));
    }
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 3));
    });
    table
}

fn add_row<const N: usize>(table: &mut Table, cells: [String; N]) {
    let shown = |cell: String| if cell.is_empty() { "-".to_owned() } else { printable(&cell) };
    table.add_row(Row::from(cells.map(shown)));
}

fn lines(cells: impl Iterator<Item = String>) -> String {
    cells.map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }).collect::<Vec<_>>().join("\n")
}

fn text(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const IRIS: &str = r#"{"name":"iris","id":"0f","state":{"ready":"READY","config_update":"UPDATE_FAILED"},
        "config":{"config_version":1,"served_entities":[
            {"name":"iris-1","entity_name":"main.default.iris","entity_version":"1",
             "state":{"deployment":"DEPLOYMENT_READY","deployment_state_message":"Scaled to zero"},
             "graphs":[{"name":"model","backend":"onnxruntime","backend_version":"1.22","target":"cpu","intra_op_threads":2}]},
            {"name":"iris-2","entity_name":"main.default.iris","entity_version":"2"}],
          "traffic_config":{"routes":[{"served_entity_name":"iris-1","traffic_percentage":90}]}},
        "pending_config":{"config_version":2,"served_entities":[{"name":"iris-3","entity_name":"main.default.iris",
            "entity_version":"3","state":{"deployment":"DEPLOYMENT_FAILED",
            "deployment_state_message":"no\u001b[31m operator"}}]}}"#;

    #[test]
    fn a_list_gives_each_entity_a_line() {
        let text =
            endpoints(&[serde_json::from_str(IRIS).unwrap(), Endpoint { name: "x".into(), ..Endpoint::default() }]);
        let expected = "\
NAME   STATE                  SERVED ENTITY          TRAFFIC   BACKEND
iris   READY, update failed   main.default.iris v1   90 %      onnxruntime 1.22
                              main.default.iris v2   -         -
x      -                      -                      -         -
";
        assert_eq!(text, expected);
    }

    #[test]
    fn one_endpoint_tells_backends_and_the_last_error() {
        let text = endpoint(&serde_json::from_str(IRIS).unwrap());
        let expected = "\
iris
  state                 READY, update failed
  id                    0f
  config                version 1
    iris-1              main.default.iris v1  90 %  DEPLOYMENT_READY
      message           Scaled to zero
      graph             model  onnxruntime 1.22 on cpu, runs with 2 threads
    iris-2              main.default.iris v2
  pending config        version 2
    iris-3              main.default.iris v3  DEPLOYMENT_FAILED
      message           no\u{fffd}[31m operator
  last error            iris-3: no\u{fffd}[31m operator
";
        assert_eq!(text, expected);
    }

    #[test]
    fn sizes_read_well() {
        let sizes = [(999, "999 B"), (1234, "1.2 KB"), (5_600_000, "5.6 MB"), (2_000_000_000, "2.0 GB")];
        sizes.into_iter().for_each(|(bytes, text)| assert_eq!(size(bytes), text));
    }
}
