//! What this machine can do at most: multiply-adds in f32 and bytes read, from memory and from a cache, on all threads.
//! One JSON line; scripts/bench/page sets the floors of our work against it.
#![expect(clippy::print_stdout, reason = "the line is the program's output")]

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

/// Independent chains of multiply-adds: enough to hide their latency.
const CHAINS: usize = 12;
const LANES: usize = 16;
const ROUNDS: usize = 4_000_000;
/// Beyond every cache, and within the last one of most machines.
const BYTES: usize = 512 << 20;
const CACHED_BYTES: usize = 16 << 20;
const TIMES: usize = 5;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn chains_avx512(seed: f32) -> f32 {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    let mut sums = [_mm512_set1_ps(seed); CHAINS];
    let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
    for _ in 0..ROUNDS {
        for chain in &mut sums {
            *chain = _mm512_fmadd_ps(*chain, a, b);
        }
    }
    let mut sum = 0.0;
    for chain in sums {
        sum += _mm512_reduce_add_ps(chain);
    }
    sum
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn chains_avx2(seed: f32) -> f32 {
    use std::arch::x86_64::{_mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps};
    // Two of eight lanes for one of sixteen, in turns: the registers hold no more than twelve chains.
    let mut sums = [_mm256_set1_ps(seed); CHAINS];
    let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
    for _ in 0..2 * ROUNDS {
        for chain in &mut sums {
            *chain = _mm256_fmadd_ps(*chain, a, b);
        }
    }
    let mut sum = 0.0;
    for chain in sums {
        sum += _mm256_cvtss_f32(chain);
    }
    sum
}

/// Without vectors that this program knows: what the compiler makes of it.
fn chains(seed: f32) -> f32 {
    let mut sums = [[seed; LANES]; CHAINS];
    let (a, b) = (black_box(0.999), black_box(0.001));
    for _ in 0..ROUNDS {
        sums = sums.map(|chain| chain.map(|x| x * a + b));
    }
    sums.iter().flatten().sum()
}

#[allow(unsafe_code)]
fn widest(seed: f32) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has the feature.
            return unsafe { chains_avx512(seed) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has the features.
            return unsafe { chains_avx2(seed) };
        }
    }
    chains(seed)
}

/// The most of several times that `work` did `amount` of something a second.
fn most(amount: f64, mut work: impl FnMut()) -> f64 {
    (0..TIMES).fold(0.0, |best, _| {
        let begin = Instant::now();
        work();
        f64::max(best, amount / begin.elapsed().as_secs_f64())
    })
}

/// Bytes a second at most, of reading as many [`BYTES`] over and over, each thread its own part of them.
fn read_per_second(bytes: usize, threads: usize) -> f64 {
    let memory = vec![1u64; bytes / 8];
    let part = memory.len().div_ceil(threads);
    let times = BYTES / bytes;
    most((times * bytes) as f64, || {
        let read =
            |chunk: &[u64]| (0..times).fold(0, |sum, _| black_box(chunk).iter().fold(sum, |a, b| a ^ b));
        black_box(memory.par_chunks(part).map(read).sum::<u64>());
    })
}

fn main() {
    let threads = rayon::current_num_threads();
    let flops = (2 * CHAINS * LANES * ROUNDS * threads) as f64;
    let flops = most(flops, || {
        black_box((0..threads).into_par_iter().with_max_len(1).map(|i| widest(i as f32)).sum::<f32>());
    });
    let bytes = read_per_second(BYTES, threads);
    let cached = read_per_second(CACHED_BYTES, threads);
    println!(
        r#"{{"kind":"ceilings","threads":{threads},"flops_per_second":{flops:.0},"bytes_per_second":{bytes:.0},"cached_bytes_per_second":{cached:.0}}}"#
    );
}
