//! What a person sees of a run: bars on a terminal, plain lines elsewhere.

use std::io::Write;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use parl_rollout::swarm::driver::Progress;

use super::rollout::Batch;
use super::summary::Figures;

/// The run's face.
pub struct Show<'o> {
    out: &'o mut dyn Write,
    bars: Option<Bars>,
}

struct Bars {
    all: MultiProgress,
    run: ProgressBar,
    rollout: ProgressBar,
    learn: ProgressBar,
}

impl<'o> Show<'o> {
    /// Bars when `terminal`, lines in any case.
    pub fn new(out: &'o mut dyn Write, terminal: bool, first_step: u64, steps: u64) -> Self {
        let bars = terminal.then(|| {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
            let style = |template: &str| {
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
            };
            let rollout = all.add(ProgressBar::new(0));
            rollout.set_style(style("rollout {bar:40.cyan} {pos}/{len} episodes, tick {msg}"));
            let learn = all.add(ProgressBar::new(0));
            learn.set_style(style("learn   {bar:40.magenta} {pos}/{len} micro-batches"));
            let run = all.add(ProgressBar::new(steps));
            run.set_style(style("run     {bar:40.green} {pos}/{len} steps, {elapsed} gone, {eta} to go"));
            run.set_position(first_step);
            run.reset_eta();
            Bars { all, run, rollout, learn }
        });
        Self { out, bars }
    }

    /// How far the step's rollout is.
    pub fn rollout(&mut self, progress: Progress) {
        if let Some(bars) = &self.bars {
            bars.rollout.set_length(progress.total as u64);
            bars.rollout.set_position(progress.done as u64);
            bars.rollout.set_message(progress.ticks.to_string());
        }
    }

    /// Tells of micro-batches done and in all, from whichever thread did them.
    pub fn learning(&self) -> impl Fn(usize, usize) + Sync + 'static {
        let bar = self.bars.as_ref().map(|bars| bars.learn.clone());
        move |done, total| {
            if let Some(bar) = &bar {
                bar.set_length(total as u64);
                bar.set_position(done as u64);
            }
        }
    }

    /// One line.
    ///
    /// # Errors
    /// When the output is closed.
    pub fn line(&mut self, text: &str) -> std::io::Result<()> {
        match &self.bars {
            Some(bars) => bars.all.suspend(|| writeln!(self.out, "{text}")),
            None => writeln!(self.out, "{text}"),
        }
    }

    /// The step's line.
    ///
    /// # Errors
    /// When the output is closed.
    pub fn step(&mut self, step: u64, steps: u64, batch: &Batch, lambdas: (f64, f64)) -> std::io::Result<()> {
        let all = Figures::of(batch.records.iter());
        let tokens: u64 = batch.records.iter().map(|r| r.prompt_tokens + r.completion_tokens).sum();
        let text = format!(
            "step {:>5}/{steps}  success {:>5.1}%  r_par {:.2}  r_fin {:.2}  λ {:.3}/{:.3}  critical {:>5.2}  agents {:>5.2}  {:>6.0} tok/s",
            step + 1,
            100.0 * all.success,
            all.r_parallel,
            all.r_finish,
            lambdas.0,
            lambdas.1,
            all.critical_steps,
            all.agents,
            tokens as f64 / batch.rollout_seconds.max(1e-9),
        );
        self.line(&text)?;
        if let Some(bars) = &self.bars {
            bars.run.set_position(step + 1);
        }
        Ok(())
    }

    /// Takes the bars away and gives the output back.
    pub fn finish(self) -> &'o mut dyn Write {
        if let Some(bars) = self.bars {
            bars.rollout.finish_and_clear();
            bars.learn.finish_and_clear();
            bars.run.finish_and_clear();
        }
        self.out
    }
}
