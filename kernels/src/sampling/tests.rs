use super::*;
use crate::rng::{RngKey, Stream};

const KEY: RngKey = RngKey { seed: 11, stream: Stream::Sample, episode: 3, agent: 1 };

fn wavy(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.7).sin() * 3.0 - (i % 5) as f32).collect()
}

fn at(sampling: Sampling, position: u32) -> Draw {
    Draw { sampling, key: KEY, position }
}

fn softmax(logits: &[f32], t: f64) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::MIN, f32::max);
    let e: Vec<f64> = logits.iter().map(|&l| (f64::from(l - top) / t).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|x| x / sum).collect()
}

fn counts(logits: &[f32], sampling: Sampling, times: u32) -> Vec<u32> {
    let (mut work, mut seen) = (Workspace::default(), vec![0; logits.len()]);
    for position in 0..times {
        let drawn = draw(Level::best(), logits, &at(sampling, position), &mut work).unwrap();
        seen[drawn.id as usize] += 1;
    }
    seen
}

/// Chi-square over tokens expected at least five times, the others in one cell.
fn chi_square(seen: &[u32], wanted: &[f64]) -> (f64, usize) {
    let times = f64::from(seen.iter().sum::<u32>());
    let (mut chi, mut cells, mut rest) = (0.0, 0, (0.0, 0.0));
    for (&n, &p) in seen.iter().zip(wanted) {
        if p * times >= 5.0 {
            chi += (f64::from(n) - p * times).powi(2) / (p * times);
            cells += 1;
        } else {
            rest = (rest.0 + f64::from(n), rest.1 + p * times);
        }
    }
    if rest.1 >= 5.0 {
        chi += (rest.0 - rest.1).powi(2) / rest.1;
        cells += 1;
    } else {
        assert!(rest.0 <= rest.1 + 15.0, "unlikely tokens were drawn {} times, expected {}", rest.0, rest.1);
    }
    (chi, cells - 1)
}

#[test]
fn draws_follow_softmax_at_their_temperature() {
    for (count, t) in [(10, 1.0), (130, 1.0), (130, 0.6), (300, 2.0)] {
        let logits = wavy(count);
        let seen = counts(&logits, Sampling { temperature: t, top_k: 0, top_p: 1.0 }, 50_000);
        let (chi, freedom) = chi_square(&seen, &softmax(&logits, f64::from(t)));
        // Mean + 4 standard deviations of the chi-square distribution.
        let bound = freedom as f64 + 4.0 * (2.0 * freedom as f64).sqrt();
        assert!(chi < bound, "{count} tokens at {t}: {chi} with {freedom} degrees of freedom");
    }
}

#[test]
fn truncated_draws_follow_the_renormalised_rest() {
    let logits = wavy(130);
    for (top_k, top_p) in [(7, 1.0), (0, 0.8), (20, 0.5), (1, 1.0), (1000, 0.9)] {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        let p = softmax(&logits, 1.0);
        order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
        order.truncate(if top_k == 0 { 130 } else { top_k });
        let mass: f64 = order.iter().map(|&i| p[i]).sum();
        let (mut kept, mut sum) = (0, 0.0);
        while kept < order.len() && sum < f64::from(top_p) * mass - 1e-9 {
            sum += p[order[kept]];
            kept += 1;
        }
        let mut wanted = vec![0.0; 130];
        order[..kept].iter().for_each(|&i| wanted[i] = p[i] / sum);
        let seen = counts(&logits, Sampling { temperature: 1.0, top_k: top_k as u32, top_p }, 30_000);
        assert!(seen.iter().zip(&wanted).all(|(&n, &w)| w > 0.0 || n == 0), "top_k {top_k} top_p {top_p}");
        let (chi, freedom) = chi_square(&seen, &wanted);
        assert!(chi <= freedom as f64 + 4.0 * (2.0 * freedom as f64).sqrt(), "{top_k} {top_p}: {chi}");
    }
}

#[test]
fn the_logprob_ignores_truncation_and_heeds_temperature() {
    let logits = wavy(130);
    for t in [0.6, 1.0, 1.7] {
        let p = softmax(&logits, f64::from(t));
        for (top_k, top_p) in [(0, 1.0), (3, 1.0), (0, 0.4)] {
            for position in 0..50 {
                let wish = at(Sampling { temperature: t, top_k, top_p }, position);
                for level in Level::available() {
                    let drawn = draw(level, &logits, &wish, &mut Workspace::default()).unwrap();
                    let wanted = p[drawn.id as usize].ln();
                    assert!(
                        (f64::from(drawn.logprob) - wanted).abs() < 1e-5,
                        "{level:?} {} {wanted}",
                        drawn.logprob
                    );
                }
            }
        }
    }
}

#[test]
fn greedy_takes_the_first_of_the_likeliest_at_temperature_one() {
    let mut logits = wavy(70);
    (logits[66], logits[20]) = (9.0, 9.0);
    for position in 0..20 {
        let drawn =
            draw(Level::best(), &logits, &at(Sampling::GREEDY, position), &mut Workspace::default()).unwrap();
        assert_eq!(drawn.id, 20);
        assert!((f64::from(drawn.logprob) - softmax(&logits, 1.0)[20].ln()).abs() < 1e-5);
    }
}

#[test]
fn ties_at_the_cut_go_to_the_lower_id() {
    let seen = counts(&[1.0; 9], Sampling { temperature: 1.0, top_k: 3, top_p: 1.0 }, 300);
    assert!(seen[..3].iter().all(|&n| n > 0) && seen[3..].iter().all(|&n| n == 0), "{seen:?}");
}

#[test]
fn the_ends_of_the_uniform_hit_tokens_with_weight() {
    let weights = [0.0, 0.5, 0.0, 0.5, 0.0];
    assert_eq!(draw_whole(&weights, &[1.0], 0.0), 1);
    assert_eq!(draw_whole(&weights, &[1.0], 0.999_999), 3);
    assert_eq!(draw_whole(&weights, &[1.0], 1.5), 3);
    let mut long = vec![0.0; 3 * RUN];
    long[RUN + 4] = 1.0;
    assert_eq!(draw_whole(&long, &[0.0, 1.0, 0.0], 1.0), RUN + 4);
}

#[test]
fn bounds_are_named() {
    let good = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
    let bad = [
        (Sampling { temperature: -1.0, ..good }, "temperature"),
        (Sampling { temperature: f32::NAN, ..good }, "temperature"),
        (Sampling { temperature: 1e-6, ..good }, "temperature"),
        (Sampling { temperature: f32::INFINITY, ..good }, "temperature"),
        (Sampling { top_p: 0.0, ..good }, "top_p"),
        (Sampling { top_p: 1.1, ..good }, "top_p"),
        (Sampling { top_p: f32::NAN, ..good }, "top_p"),
    ];
    for (sampling, name) in bad {
        let error = draw(Level::best(), &[0.0], &at(sampling, 0), &mut Workspace::default()).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
    assert!(draw(Level::best(), &[], &at(good, 0), &mut Workspace::default()).is_err());
    assert!(draw(Level::best(), &[0.0, f32::NAN], &at(good, 0), &mut Workspace::default()).is_err());
}
