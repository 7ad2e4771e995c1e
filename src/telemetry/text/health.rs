//! One line a worker of the health lines of its actors, and only when it says something new.

use std::collections::BTreeMap;

use image_builder_actors::telemetry::health::ActorName;
use serde_json::Value;

use super::super::fields::Fields;
use super::wording::duration;

/// What a worker's actors last said.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Of the round that is under way, by actor.
    round: BTreeMap<String, Figures>,
    states: BTreeMap<String, String>,
    shown: String,
}

#[derive(Debug, Default)]
struct Figures {
    state: String,
    in_hand: u64,
    waiting: u64,
    done: u64,
    restarts: u64,
    oldest: Option<u64>,
    failed: u64,
}

impl Health {
    /// Takes an actor's health line. When all have said theirs, or one says it again: the worker's line,
    /// unless it is the one that was shown last.
    pub(super) fn report(&mut self, fields: &mut Fields) -> Option<String> {
        let actor = fields.take_text("actor")?;
        let closes = self.round.contains_key(&actor);
        let ended = if closes { std::mem::take(&mut self.round) } else { BTreeMap::new() };
        self.round.insert(actor, figures(fields));
        let ended = match self.round.len() == ActorName::ALL.len() {
            true => std::mem::take(&mut self.round),
            false if closes => ended,
            false => return None,
        };
        let line = summary(&ended);
        (line != self.shown).then(|| {
            self.shown.clone_from(&line);
            line
        })
    }

    /// Takes an actor's change of state. That of a normal start or end says nothing; why an actor died is
    /// said by another line.
    pub(super) fn change(&mut self, fields: &mut Fields) -> Option<String> {
        let state = fields.take_text("state")?;
        let actor = fields.text("actor")?.to_owned();
        let before = self.states.insert(actor, state.clone());
        let is_back = state == "running" && before.as_deref() == Some("restarting");
        is_back.then(|| "at work again".to_owned())
    }
}

fn figures(fields: &mut Fields) -> Figures {
    let mut count = |name: &str| fields.take(name).and_then(|value| value.as_u64());
    let figures = Figures {
        in_hand: count("in_hand").unwrap_or_default(),
        waiting: count("waiting").unwrap_or_default(),
        done: count("done").unwrap_or_default(),
        failed: count("failed").unwrap_or_default(),
        restarts: count("restarts").unwrap_or_default(),
        oldest: count("oldest_seconds"),
        ..Figures::default()
    };
    let state = fields.take("state").as_ref().and_then(Value::as_str).map(str::to_owned);
    // Each failure had a line of its own.
    for said in ["failed_by", "last_fault"] {
        fields.take(said);
    }
    Figures { state: state.unwrap_or_default(), ..figures }
}

fn summary(actors: &BTreeMap<String, Figures>) -> String {
    // In the order of a job's way.
    let names = ActorName::ALL.iter().map(|name| name.as_str());
    let actors: Vec<_> = names.filter_map(|name| Some((name, actors.get(name)?))).collect();
    let busy = actors.iter().filter(|(_, now)| now.in_hand + now.waiting > 0);
    let busy: Vec<String> = busy
        .map(|(name, now)| match now.waiting {
            0 => format!("{name} {}", now.in_hand),
            waiting => format!("{name} {} (+{waiting})", now.in_hand),
        })
        .collect();
    let mut parts = vec![match busy.is_empty() {
        true => "idle".to_owned(),
        false => format!("in hand: {}", busy.join(", ")),
    }];
    // One that has only just begun is not worth the words.
    let oldest = actors.iter().filter_map(|(_, now)| now.oldest).max().filter(|age| *age >= 10);
    if let Some(oldest) = oldest {
        parts.push(format!("one for {}", duration(oldest as f64)));
    }
    let ready = actors.iter().find(|(name, _)| *name == ActorName::Pusher.as_str());
    let ready = ready.map_or(0, |(_, now)| now.done);
    // What managers do not take is no failed try.
    let builds = actors.iter().filter(|(name, _)| *name != ActorName::Notifier.as_str());
    let failed: u64 = builds.map(|(_, now)| now.failed).sum();
    if ready + failed > 0 {
        let tries = if failed == 1 { "try" } else { "tries" };
        parts.push(format!("so far {ready} ready, {failed} failed {tries}"));
    }
    for (name, now) in &actors {
        if now.state != "running" {
            parts.push(format!("{name} is {}", now.state));
        }
        if now.restarts > 0 {
            parts.push(format!("{name} restarted {} ×", now.restarts));
        }
    }
    parts.join("; ")
}
