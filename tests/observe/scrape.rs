//! `/metrics`, read as Prometheus reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use crate::support::worker::Worker;

/// One scrape.
pub(crate) struct Scrape {
    pub(crate) page: String,
    /// Family to type.
    pub(crate) types: BTreeMap<String, String>,
    /// Name and labels, as they stand there, to value.
    pub(crate) samples: BTreeMap<String, f64>,
}

impl Scrape {
    pub(crate) fn of(worker: &Worker) -> Self {
        let (status, page) = worker.get("/metrics");
        assert_eq!(status, 200);
        let mut types = BTreeMap::new();
        let mut samples = BTreeMap::new();
        for line in page.lines() {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                let (family, kind) = declared.split_once(' ').expect("a family and its type");
                types.insert(family.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').expect("a series and its value");
                samples.insert(series.to_owned(), value.parse().expect("a number"));
            }
        }
        Self { page, types, samples }
    }

    /// All values that this label has in this family's samples.
    pub(crate) fn values(&self, family: &str, label: &str) -> BTreeSet<&str> {
        let mark = format!("{label}=\"");
        let labels = |series: &'_ String| series.starts_with(&format!("{family}{{"));
        let of_family = self.samples.keys().filter(|series| labels(series));
        of_family
            .filter_map(|series| {
                let labels = series.split_once('{')?.1;
                let at = labels.find(&mark)? + mark.len();
                labels[at..].split('"').next()
            })
            .collect()
    }

    /// The value of a series, named as it stands there.
    #[track_caller]
    pub(crate) fn value(&self, series: &str) -> f64 {
        *self.samples.get(series).unwrap_or_else(|| panic!("no {series} in:\n{}", self.page))
    }
}

/// Runs `promtool` with this input; the answer is all that it has to say.
pub(crate) fn promtool(arguments: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed: run .devcontainer/stack.sh install");
    let mut stdin = child.stdin.take().expect("it is a pipe");
    stdin.write_all(input.as_bytes()).expect("promtool reads its input");
    drop(stdin);
    let output = child.wait_with_output().expect("promtool ends");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// `promtool check metrics` finds nothing to say about this page.
#[track_caller]
pub(crate) fn assert_clean(page: &str) {
    assert_eq!(promtool(&["check", "metrics"], page), (true, String::new()), "{page}");
}
