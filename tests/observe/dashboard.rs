//! The Grafana dashboard shows what there is, and all of it.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::Value;

use crate::Idle;
use crate::scrape::{Scrape, promtool};

/// A query of the dashboard, and how its lines are named.
struct Query {
    panel: String,
    expr: String,
    legend: String,
}

fn dashboard() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/grafana-dashboard.json");
    let text = std::fs::read_to_string(path).expect("the dashboard is there");
    serde_json::from_str(&text).expect("the dashboard is JSON")
}

fn queries(dashboard: &Value) -> Vec<Query> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let panels = dashboard["panels"].as_array().expect("there are panels");
    let mut queries = Vec::new();
    for panel in panels {
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push(Query {
                panel: text(&panel["title"]),
                expr: text(&target["expr"]),
                legend: text(&target["legendFormat"]),
            });
        }
    }
    queries
}

/// The families that an expression names, and the sample names as they stand in it.
fn names(expr: &str) -> BTreeSet<String> {
    let name = Regex::new("image_builder_[a-z_]+").expect("a good pattern");
    name.find_iter(expr).map(|found| found.as_str().to_owned()).collect()
}

fn family(name: &str, scrape: &Scrape) -> String {
    let parts = ["_bucket", "_sum", "_count"];
    let base = parts.iter().find_map(|part| name.strip_suffix(part));
    base.filter(|base| scrape.types.get(*base).is_some_and(|kind| kind == "histogram"))
        .unwrap_or(name)
        .to_owned()
}

#[test]
fn every_query_asks_for_series_and_labels_that_a_worker_has() {
    let idle = Idle::start();
    let scrape = Scrape::of(&idle.worker);
    let queries = queries(&dashboard());
    assert!(queries.len() >= 15);
    let label = Regex::new(r"\{\{(\w+)\}\}").expect("a good pattern");
    let matcher = Regex::new(r#"(\w+)="(\w[\w.]*)""#).expect("a good pattern");
    for Query { panel, expr, legend } in &queries {
        let names = names(expr);
        assert!(!names.is_empty(), "{panel}: {expr}");
        for name in &names {
            let series = |series: &&String| {
                series
                    .strip_prefix(name.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
            };
            assert!(scrape.samples.keys().any(|s| series(&s)), "{panel}: there is no {name}");
            for label in label.captures_iter(legend).map(|found| found[1].to_owned()) {
                // The one label that Prometheus adds itself.
                let known = label == "instance" || !scrape.values(name, &label).is_empty();
                assert!(known, "{panel}: {name} has no label {label}");
                assert!(expr.contains(&label), "{panel}: {label} is not kept by {expr}");
            }
            for found in matcher.captures_iter(expr) {
                assert!(
                    scrape.values(name, &found[1]).contains(&found[2]),
                    "{panel}: {name} is never {}",
                    &found[0]
                );
            }
        }
    }
}

#[test]
fn every_family_is_shown() {
    let idle = Idle::start();
    let scrape = Scrape::of(&idle.worker);
    let shown: BTreeSet<String> = queries(&dashboard())
        .iter()
        .flat_map(|query| names(&query.expr))
        .map(|name| family(&name, &scrape))
        .collect();
    let all: BTreeSet<String> = scrape.types.keys().cloned().collect();
    assert_eq!(shown, all);
}

#[test]
fn every_query_is_good_promql() {
    let rules: Vec<Value> = queries(&dashboard())
        .iter()
        .enumerate()
        .map(|(number, query)| {
            let expr = query.expr.replace("$instance", ".*").replace("$__rate_interval", "5m");
            serde_json::json!({"record": format!("query:{number}"), "expr": expr})
        })
        .collect();
    let file = tempfile::Builder::new().suffix(".json").tempfile().expect("a file can be made");
    let groups = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]});
    std::fs::write(file.path(), groups.to_string()).expect("the file can be written");
    let path = file.path().display().to_string();
    let (good, said) = promtool(&["check", "rules", &path], "");
    assert!(good, "{said}");
    assert!(said.contains(&format!("{} rules found", rules.len())), "{said}");
}

#[test]
fn a_person_picks_the_data_source_and_the_worker() {
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().expect("there are variables");
    let names: Vec<_> = variables.iter().map(|variable| variable["name"].as_str()).collect();
    assert_eq!(names, [Some("datasource"), Some("instance")]);
    for panel in dashboard["panels"].as_array().expect("there are panels") {
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        }
    }
    for query in queries(&dashboard) {
        assert!(query.expr.contains("instance=~\"$instance\""), "{}", query.panel);
    }
}
