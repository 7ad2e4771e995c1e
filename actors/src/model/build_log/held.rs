//! Lines that wait for those after them: a secret may be split over several.

use std::collections::BTreeMap;
use std::fmt;

use super::StepRef;
use crate::model::secret::Redactor;

/// Output that ends with what may be a secret's beginning, by the number of its step; 0 = it has none.
#[derive(Debug, Default)]
pub(super) struct HeldLines(BTreeMap<u32, (Option<StepRef>, Unfinished)>);

/// Whole lines, and from where on the next ones may complete a secret, in bytes.
struct Unfinished {
    text: String,
    from: usize,
}

impl fmt::Debug for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unfinished({} bytes)", self.text.len())
    }
}

impl HeldLines {
    /// How much is held back from a secret's beginning on, in bytes.
    const LONGEST: usize = 4 * 1024;

    /// Adds a line, and returns the lines that need not wait any longer.
    pub(super) fn add(
        &mut self,
        redactor: &Redactor,
        step: Option<StepRef>,
        line: &str,
    ) -> Option<String> {
        let before = self.0.remove(&number(step)).map(|(_, unfinished)| unfinished);
        let (mut text, from) = match before {
            Some(before) => (before.text + "\n" + line, before.from),
            None => (line.to_owned(), 0),
        };
        let Some(at) = redactor.unfinished(&text[from..]).map(|at| from + at) else {
            return Some(text);
        };
        if text.len() - at > Self::LONGEST {
            return Some(text);
        }
        let done = text[..at].rfind('\n');
        let held = text.split_off(done.map_or(0, |end| end + 1));
        let from = at - done.map_or(0, |end| end + 1);
        self.0.insert(number(step), (step, Unfinished { text: held, from }));
        done.map(|end| {
            text.truncate(end);
            text
        })
    }

    /// What is held back of a step.
    pub(super) fn take(&mut self, step: Option<StepRef>) -> Option<String> {
        self.0.remove(&number(step)).map(|(_, unfinished)| unfinished.text)
    }

    /// All that is held back.
    pub(super) fn into_lines(self) -> impl Iterator<Item = (Option<StepRef>, String)> {
        self.0.into_values().map(|(step, unfinished)| (step, unfinished.text))
    }
}

fn number(step: Option<StepRef>) -> u32 {
    step.map_or(0, |step| step.number)
}

#[cfg(test)]
mod tests {
    use super::super::{BuildEvent, BuildLog};
    use super::*;
    use crate::model::secret::Secret;

    fn written(lines: &[(u32, &str)]) -> Vec<String> {
        let progress = BuildLog::new("b", Redactor::new([Secret::new("correct horse battery")]));
        for (number, line) in lines {
            let step = StepRef { number: *number, internal: false, stream: 1 };
            progress.tell_of_step(step, BuildEvent::Output((*line).to_owned()));
        }
        progress.tail()
    }

    #[test]
    fn a_secret_that_is_split_over_lines_is_known() {
        assert_eq!(
            written(&[(1, "a"), (1, "b correct"), (1, " horse battery c"), (1, "d")]),
            ["a", "b [secret] c", "d"]
        );
        let split = [(1, "x corre"), (2, "y"), (1, "ct h"), (1, ""), (1, "orse battery"), (1, "z")];
        assert_eq!(written(&split), ["y", "x [secret]", "z"]);
        // A part of it may end with what else would be left out at the end of a line.
        assert_eq!(written(&[(1, "correct "), (1, "horse "), (1, "battery")]), ["[secret]"]);
        // Its base64, as programs wrap it.
        let wrapped = [(1, "Y29ycmVjdCBo"), (1, "b3JzZSBiYXR0"), (1, "ZXJ5Cg==")];
        assert_eq!(written(&wrapped), ["[secret]Cg=="]);
    }

    #[test]
    fn a_line_that_only_seemed_to_begin_a_secret_is_not_lost() {
        let lines = [(1, "correct"), (1, "correct ho"), (1, "uses"), (2, "corr"), (3, "end")];
        assert_eq!(written(&lines), ["correct", "correct ho", "uses", "end", "corr"]);
        let endless: Vec<_> = std::iter::once((1, "corr")).chain([(1, ""); 5_000]).collect();
        assert_eq!(written(&endless).len(), BuildLog::TAIL_LINES);
        assert_eq!(written(&endless[..5]), ["corr", "", "", "", ""]);
    }
}
