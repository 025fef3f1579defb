//! Demonstrations: scripted episodes as contexts to learn from, and drills in copying.
//!
//! Habit and skill are kept apart: most demonstrations work in parallel, but whether to work alone or to make a
//! sub-agent is one token, and its loss is left out but for a small share of them.

use std::collections::HashMap;

use parl_kernels::rng::{RngKey, Stream};
use parl_rollout::dialect::{Dialect, Mode, Role};
use parl_rollout::policy::Policy;
use parl_rollout::policy::scripted::Script;
use parl_rollout::swarm::driver::{self, Stage};
use parl_rollout::swarm::{CREATE, EpisodeSpec};
use parl_rollout::tasks::TaskKind;
use parl_rollout::tasks::atlas::{MAX_ITEMS, facts_in};
use parl_rollout::trajectory::record::{EpisodeRecord, TokenBranch};

use super::SftConfig;
use crate::error::TrainerError;
use crate::learner::Sample;
use crate::run::environment::Environment;

/// Tasks whose facts a drill is made of.
const TASKS_OF_A_DRILL: u64 = 4;
/// Documents of a drill in reading.
const DOCUMENTS_OF_A_DRILL: usize = 4;
/// Facts that are asked of each.
const FACTS_OF_A_DOCUMENT: usize = 4;
/// Drills take their tasks from far behind the demonstrations'.
const DRILLS: u64 = 1 << 30;

/// Random choices of one step, by purpose.
pub(super) struct Choices {
    key: RngKey,
    next: u32,
}

impl Choices {
    pub(super) fn new(seed: u64, step: u64) -> Self {
        Self { key: RngKey { seed, stream: Stream::Shuffle, episode: step, agent: 0 }, next: 0 }
    }

    fn unit(&mut self) -> f64 {
        self.next += 1;
        self.key.uniform_f64(self.next)
    }

    fn below(&mut self, n: usize) -> usize {
        ((self.unit() * n as f64) as usize).min(n.saturating_sub(1))
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// The samples of one step of the warm start.
///
/// # Errors
/// What the scripted rollout fails with.
pub fn samples(
    seed: u64,
    sft: &SftConfig,
    environment: &Environment,
    step: u64,
) -> Result<Vec<Sample>, TrainerError> {
    let mut choices = Choices::new(seed, step);
    let progress = step as f64 / sft.steps as f64;
    let drills = if progress < sft.drill_until { sft.drill_share } else { sft.drill_share / 4.0 };
    let n_drills = (f64::from(sft.episodes_per_step) * drills) as usize;
    // Slowly at first: looking up is found among few facts, or not for long.
    let hard = (progress / sft.drill_until).min(1.0).powi(2);
    let mut samples: Vec<Sample> = (0..n_drills)
        .map(|i| {
            let first = DRILLS + (step * 1000 + i as u64) * TASKS_OF_A_DRILL;
            match choices.below(4) {
                0 => echo(environment, hard, &mut choices),
                1 => labels(environment, hard, &mut choices),
                2 => drill(environment, first, hard, &mut choices),
                _ => match reading(environment, first, &mut choices)? {
                    Some(sample) => Ok(sample),
                    None => drill(environment, first, hard, &mut choices),
                },
            }
        })
        .collect::<Result<_, parl_rollout::RolloutError>>()?;
    let first = step * u64::from(sft.episodes_per_step);
    let count = u64::from(sft.episodes_per_step) - n_drills as u64;
    let [mut alone, mut together, mut spurious] = [const { Vec::<EpisodeSpec>::new() }; 3];
    for i in 0..count {
        let spec = environment.demonstration_spec(first + i);
        // Nothing is drawn where there are none, so that a recipe without them keeps its demonstrations.
        if sft.spurious_share > 0.0 && choices.unit() < sft.spurious_share {
            spurious.push(spec);
            continue;
        }
        let parallel = spec.task.kind != TaskKind::Deep && choices.unit() < sft.parallel_share;
        if parallel { together.push(spec) } else { alone.push(spec) }
    }
    for (script, specs) in
        [(Script::Serial, alone), (Script::Parallel, together), (Script::Spurious, spurious)]
    {
        let mut policy = crate::run::seats::experts(environment, script);
        for record in run(sft, environment, policy.as_mut(), specs)? {
            let counted = choices.unit() < sft.habit_share;
            samples.extend(from_episode(environment, &record, script, counted, sft, &mut choices));
        }
    }
    Ok(samples)
}

/// Demonstrations of held-out tasks by what they show, every word of theirs counted: to see what is mastered.
///
/// # Errors
/// As [`samples`].
pub fn probes(
    sft: &SftConfig,
    environment: &Environment,
    tasks: u32,
) -> Result<Vec<(&'static str, Sample)>, TrainerError> {
    let mut probes = Vec::new();
    for (script, name) in [(Script::Serial, "alone"), (Script::Parallel, "together")] {
        let mut policy = crate::run::seats::experts(environment, script);
        for record in run(sft, environment, policy.as_mut(), environment.heldout_specs(tasks, 0))? {
            let name = if record.task_kind == TaskKind::Deep { "deep" } else { name };
            if script == Script::Parallel && record.task_kind == TaskKind::Deep {
                continue;
            }
            let mut branches = record.branches.iter().take(2).map(|branch| sample(environment, branch));
            probes.extend(branches.next().map(|mut s| {
                leave_habit_out(&environment.dialect, &mut s);
                (name, s)
            }));
            probes.extend(branches.next().map(|s| ("sub-agent", s)));
        }
    }
    let mut choices = Choices::new(u64::MAX, 0);
    for i in 0..tasks {
        let first = DRILLS / 2 + u64::from(i) * TASKS_OF_A_DRILL;
        probes.extend(reading(environment, first, &mut choices)?.map(|sample| ("reading", sample)));
    }
    for i in 0..tasks {
        probes.push((
            "drill",
            drill(environment, DRILLS / 2 + u64::from(i) * TASKS_OF_A_DRILL, 1.0, &mut choices)?,
        ));
    }
    Ok(probes)
}

fn run(
    sft: &SftConfig,
    environment: &Environment,
    policy: &mut dyn Policy,
    specs: Vec<EpisodeSpec>,
) -> Result<Vec<EpisodeRecord>, TrainerError> {
    let mut rules = environment.rules.clone();
    rules.outage_rate = sft.outage_rate;
    let stage = Stage {
        rules: &rules,
        dialect: &environment.dialect,
        tools: &environment.tools,
        tool_fault_rate: sft.tool_fault_rate,
        max_concurrent_episodes: usize::MAX,
        keep_subagent_contexts: true,
        clock_ms: &|| 0,
        epoch_us: 0,
    };
    Ok(driver::run(&stage, policy, specs, &mut |_| {})?)
}

fn from_episode(
    environment: &Environment,
    record: &EpisodeRecord,
    script: Script,
    habit_counts: bool,
    sft: &SftConfig,
    choices: &mut Choices,
) -> Vec<Sample> {
    let mut samples = Vec::new();
    for branch in &record.branches {
        if branch.branch_idx > 0 && choices.unit() >= sft.subagent_share {
            continue;
        }
        let mut sample = sample(environment, branch);
        if sft.swapped_share > 0.0 && choices.unit() < sft.swapped_share {
            swap_words(environment, &mut sample, choices);
        }
        if branch.branch_idx == 0
            && record.task_kind != TaskKind::Deep
            && script == Script::Parallel
            && !habit_counts
        {
            leave_habit_out(&environment.dialect, &mut sample);
        }
        samples.push(sample);
    }
    samples
}

fn sample(environment: &Environment, branch: &TokenBranch) -> Sample {
    // What came last in a context that overflowed is beyond every model that was made for it.
    let rules = &environment.rules;
    let longest = rules.orchestrator.max_context_tokens.max(rules.subagent.max_context_tokens) as usize;
    let n = branch.token_ids.len().min(longest);
    lesson(branch.token_ids[..n].to_vec(), branch.loss_mask[..n].to_vec())
}

/// A context to learn by heart where the mask says so: nobody drew it, and it is compared with none.
fn lesson(tokens: Vec<u32>, mask: Vec<bool>) -> Sample {
    let n = tokens.len();
    Sample { tokens, mask, logprobs: vec![0.0; n], temperatures: vec![1.0; n], ..Sample::default() }
}

/// Swaps the words that a data set brought into the tokenizer, by one random permutation.
pub(super) fn swap_words(environment: &Environment, sample: &mut Sample, choices: &mut Choices) {
    let mut others = environment.own_ids.clone();
    choices.shuffle(&mut others);
    let swapped: HashMap<u32, u32> = environment.own_ids.iter().copied().zip(others).collect();
    for token in &mut sample.tokens {
        *token = swapped.get(token).copied().unwrap_or(*token);
    }
}

/// Takes the loss off the token that decides to make a sub-agent.
fn leave_habit_out(dialect: &Dialect, sample: &mut Sample) {
    let Ok(create) = dialect.encode_text(CREATE) else { return };
    let drawn = |i: &usize| sample.mask[*i] && create.first() == Some(&sample.tokens[*i]);
    if let Some(at) = (0..sample.tokens.len()).find(drawn) {
        sample.mask[at] = false;
    }
}

/// Documents of a task, each followed by some of its facts in another order, as notes are taken after reading; the loss
/// is on what stands behind each fact's first word. None where no document states a fact.
fn reading(
    environment: &Environment,
    first_task: u64,
    choices: &mut Choices,
) -> Result<Option<Sample>, parl_rollout::RolloutError> {
    let dialect = &environment.dialect;
    let mut sample = Sample::default();
    let mut push = |ids: &[u32], trained: bool| {
        sample.tokens.extend_from_slice(ids);
        sample.mask.resize(sample.tokens.len(), trained);
    };
    let parts = environment.demonstration_spec(first_task).task.parts.clone();
    for part in parts.iter().take(DOCUMENTS_OF_A_DRILL) {
        let Some(text) = environment.read_about(&part.query) else { continue };
        let mut facts = facts_in(&text);
        if facts.is_empty() {
            continue;
        }
        choices.shuffle(&mut facts);
        // Links first, whose values are names: attributes are learned by their few values, without looking them up.
        facts.sort_by_key(|fact| std::cmp::Reverse(fact.split(' ').count()));
        facts.truncate(FACTS_OF_A_DOCUMENT);
        choices.shuffle(&mut facts);
        push(&dialect.message(Role::Tool, &text)?, false);
        push(&dialect.turn_prefix(Mode::Instant), false);
        for fact in &facts {
            let (key, value) = fact.split_once(' ').unwrap_or((fact, ""));
            push(&dialect.encode_text(key)?, false);
            push(&dialect.encode_text(value)?, true);
        }
        push(&[dialect.special().end], false);
    }
    Ok(sample.mask.contains(&true).then(|| lesson(sample.tokens, sample.mask)))
}

/// Facts of several tasks (`n3 amber falcon`, `mentor stone heron`, `month march`), said again twice in other orders;
/// the loss is on what stands behind each one's first word. It teaches to look a word up and to copy what follows it,
/// which every call and answer needs.
fn drill(
    environment: &Environment,
    first_task: u64,
    hard: f64,
    choices: &mut Choices,
) -> Result<Sample, parl_rollout::RolloutError> {
    let wanted = facts_of_a_drill(hard, choices);
    let mut facts: Vec<(String, String)> = Vec::new();
    for number in first_task..first_task + TASKS_OF_A_DRILL {
        for part in &environment.demonstration_spec(number).task.parts {
            let fact = if choices.unit() < 0.5 { &part.query } else { &part.answer };
            if let Some((key, rest)) = fact.split_once(' ')
                && facts.iter().all(|(known, _)| known != key)
            {
                facts.push((key.to_owned(), rest.to_owned()));
            }
        }
    }
    choices.shuffle(&mut facts);
    facts.truncate(wanted);
    said_again(&environment.dialect, facts, choices)
}

/// Any words of the vocabulary, said again in their order; the loss is on all but the first time. What followed a word
/// before follows it again: the first thing to learn of looking up, and the only one with a lesson in every word.
fn echo(
    environment: &Environment,
    hard: f64,
    choices: &mut Choices,
) -> Result<Sample, parl_rollout::RolloutError> {
    let words = content_words(environment);
    let mut once = Vec::new();
    for _ in 0..3 + choices.below(2 + (hard * 40.0) as usize) {
        once.extend(environment.dialect.encode_text(words[choices.below(words.len())])?);
    }
    let mut sample = Sample::default();
    for round in 0..3 {
        sample.tokens.extend_from_slice(&once);
        sample.mask.resize(sample.tokens.len(), round > 0);
    }
    Ok(lesson(sample.tokens, sample.mask))
}

/// Few at first: the fewer there are to choose from, the sooner looking up pays.
fn facts_of_a_drill(hard: f64, choices: &mut Choices) -> usize {
    2 + choices.below(1 + (hard * 10.0) as usize)
}

/// As [`drill`], with labels and any words of the vocabulary: a lookup that no knowledge of names or values helps with.
fn labels(
    environment: &Environment,
    hard: f64,
    choices: &mut Choices,
) -> Result<Sample, parl_rollout::RolloutError> {
    let words = content_words(environment);
    let mut facts: Vec<(String, String)> = (1..=MAX_ITEMS)
        .map(|label| {
            let (a, b) = (words[choices.below(words.len())], words[choices.below(words.len())]);
            (format!("n{label}"), format!("{a} {b}"))
        })
        .collect();
    choices.shuffle(&mut facts);
    facts.truncate(facts_of_a_drill(hard, choices));
    said_again(&environment.dialect, facts, choices)
}

/// The words that are neither marks nor particles nor labels; there are always some, the generated world's.
fn content_words(environment: &Environment) -> Vec<&str> {
    environment.words.iter().map(String::as_str).filter(|w| w.len() > 2).collect()
}

/// Keys and what belongs to them, three times, each time in another order; the loss is on what belongs to a key from
/// the second time on.
fn said_again(
    dialect: &Dialect,
    mut facts: Vec<(String, String)>,
    choices: &mut Choices,
) -> Result<Sample, parl_rollout::RolloutError> {
    let mut sample = Sample::default();
    let mut push = |ids: &[u32], trained: bool| {
        sample.tokens.extend_from_slice(ids);
        sample.mask.resize(sample.tokens.len(), trained);
    };
    for round in 0..3 {
        choices.shuffle(&mut facts);
        let message = dialect.message(if round == 0 { Role::User } else { Role::Tool }, "")?;
        push(&message[..1], false);
        for (key, rest) in &facts {
            push(&dialect.encode_text(key)?, false);
            push(&dialect.encode_text(rest)?, round > 0);
            push(&dialect.encode_text(";")?, false);
        }
        push(&message[1..], false);
    }
    Ok(lesson(sample.tokens, sample.mask))
}
