//! Which samples go through the layers together, and what of them is computed once.
//!
//! A hidden state depends on the tokens up to its own alone. So what samples begin with alike needs computing once,
//! whoever of them drew it and whatever is trained on: a family is a prefix and the suffixes that follow it. No token is
//! padding.

use std::cmp::Reverse;

use super::Sample;

/// A shorter prefix is computed by each sample for itself: a family costs some small operations of its own.
const SHORTEST_PREFIX: usize = 16;

/// Samples that begin alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Family {
    /// Inputs that all members begin with; of a single one, all of its inputs.
    pub prefix: usize,
    /// Numbers of the samples, in the order of what follows the prefix: shorter suffixes first.
    pub members: Vec<usize>,
}

impl Family {
    /// The family of these samples, of which there is one at least.
    pub(super) fn of(samples: &[Sample], mut members: Vec<usize>) -> Self {
        let inputs = |i: usize| samples[i].inputs();
        let alike = members.iter().map(|i| alike(inputs(members[0]), inputs(*i))).min();
        members.sort_by_key(|i| (inputs(*i).len(), *i));
        Self { prefix: alike.unwrap_or(0), members }
    }

    /// Tokens that it computes.
    pub(super) fn tokens(&self, samples: &[Sample]) -> usize {
        let suffix = |i: &usize| samples[*i].inputs().len() - self.prefix;
        self.prefix + self.members.iter().map(suffix).sum::<usize>()
    }
}

/// How many elements two lists begin with alike.
fn alike(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Shares samples out to the families that compute the fewest tokens; one that would pass `budget` is not made, unless
/// a single sample does.
pub(super) fn families(samples: &[Sample], mut asked: Vec<usize>, budget: usize) -> Vec<Family> {
    // In this order those that begin alike are neighbours, and a family is a stretch.
    asked.sort_by(|a, b| samples[*a].inputs().cmp(samples[*b].inputs()).then(a.cmp(b)));
    let inputs: Vec<&[u32]> = asked.iter().map(|i| samples[*i].inputs()).collect();
    let shared: Vec<usize> = inputs.windows(2).map(|pair| alike(pair[0], pair[1])).collect();
    // Of the first n samples: the fewest tokens, and where the last family begins.
    let mut best = vec![(0, 0)];
    for end in 1..=inputs.len() {
        let mut length = inputs[end - 1].len();
        let mut prefix = length;
        let mut found = (best[end - 1].0 + length, end - 1);
        for start in (0..end - 1).rev() {
            prefix = prefix.min(shared[start]);
            length += inputs[start].len();
            let tokens = length - (end - start - 1) * prefix;
            // Both only get worse with another member.
            if prefix < SHORTEST_PREFIX || tokens > budget {
                break;
            }
            found = found.min((best[start].0 + tokens, start));
        }
        best.push(found);
    }
    let mut families = Vec::new();
    let mut end = inputs.len();
    while end > 0 {
        let start = best[end].1;
        families.push(Family::of(samples, asked[start..end].to_vec()));
        end = start;
    }
    families
}

/// Shares families out to micro-batches of like size, none above `budget` unless a single family is. They are of an
/// even number, so that two workers end together; the number of workers itself may not count, since sums depend on it.
pub(super) fn micro_batches(
    samples: &[Sample],
    mut families: Vec<Family>,
    budget: usize,
) -> Vec<Vec<Family>> {
    let size = |family: &Family| family.tokens(samples);
    families.sort_by_key(|family| (Reverse(size(family)), family.members[0]));
    let total: usize = families.iter().map(size).sum();
    let mut n = total.div_ceil(budget.max(1)).next_multiple_of(2);
    loop {
        // Each to the emptiest so far, the largest first.
        let mut batches: Vec<(usize, Vec<Family>)> = vec![(0, Vec::new()); n];
        for family in &families {
            if let Some((tokens, batch)) = batches.iter_mut().min_by_key(|(tokens, _)| *tokens) {
                *tokens += size(family);
                batch.push(family.clone());
            }
        }
        if batches.iter().all(|(tokens, batch)| *tokens <= budget || batch.len() == 1) {
            return batches.into_iter().map(|(_, batch)| batch).filter(|batch| !batch.is_empty()).collect();
        }
        n += 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample whose inputs are these, and one token more that is trained on.
    fn sample(inputs: &[u32]) -> Sample {
        let mask = [vec![false; inputs.len()], vec![true, false]].concat();
        Sample { tokens: [inputs, &[0, 0]].concat(), mask, ..Sample::default() }
    }

    /// `prompt` tokens of one kind, then `more` of another.
    fn after(prompt: usize, kind: u32, more: &[(u32, usize)]) -> Sample {
        let more = more.iter().flat_map(|(token, n)| vec![*token; *n]);
        sample(&[vec![kind; prompt], more.collect()].concat())
    }

    fn told(samples: &[Sample], budget: usize) -> Vec<(usize, Vec<usize>)> {
        let mut families = families(samples, (0..samples.len()).collect(), budget);
        families.sort_by_key(|family| family.members.iter().min().copied());
        families.into_iter().map(|family| (family.prefix, family.members)).collect()
    }

    #[test]
    fn what_begins_alike_is_computed_once() {
        // Two prompts that share their first 20 tokens; one sample goes on as another one did; one is shared by none.
        let samples = [
            after(20, 1, &[(2, 30), (5, 4)]),
            after(20, 1, &[(3, 30), (6, 9)]),
            after(20, 1, &[(2, 30), (7, 2)]),
            after(20, 1, &[(3, 30), (6, 9)]),
            after(20, 1, &[(2, 30)]),
            after(15, 8, &[(9, 3)]),
            after(15, 8, &[(7, 3)]),
        ];
        let families = told(&samples, 1000);
        assert_eq!(
            families,
            [(50, vec![4, 2, 0]), (59, vec![1, 3]), (18, vec![5]), (18, vec![6])],
            "fifteen tokens are too few to share"
        );
        let tokens = |members: &[usize]| Family::of(&samples, members.to_vec()).tokens(&samples);
        assert_eq!((tokens(&[4, 2, 0]), tokens(&[1, 3]), tokens(&[6])), (56, 59, 18));
        // One family of both prompts beats two where each is of one sample.
        assert_eq!(told(&samples[..2], 1000), [(20, vec![0, 1])]);
        assert_eq!(told(&samples[..2], 68), [(54, vec![0]), (59, vec![1])]);
        assert_eq!(told(&[], 1000), []);
    }

    #[test]
    fn families_are_cut_where_they_pass_the_budget() {
        let samples: Vec<Sample> = (0..6).map(|i| after(40, 1, &[(10 + i, 30)])).collect();
        for (budget, sizes) in [(220, vec![6]), (219, vec![1, 5]), (130, vec![3, 3]), (69, vec![1; 6])] {
            let families = families(&samples, (0..6).collect(), budget);
            let mut found: Vec<usize> = families.iter().map(|f| f.members.len()).collect();
            found.sort_unstable();
            assert_eq!(found, sizes, "{budget}");
            let mut all: Vec<usize> = families.into_iter().flat_map(|f| f.members).collect();
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2, 3, 4, 5]);
        }
    }

    #[test]
    fn micro_batches_are_even_in_number_and_alike_in_size() {
        let batches = |lengths: &[usize], budget: usize| {
            let samples: Vec<Sample> = (1..).zip(lengths).map(|(i, n)| after(*n, i, &[])).collect();
            let families = families(&samples, (0..samples.len()).collect(), budget);
            let size = |batch: &Vec<Family>| batch.iter().map(|f| f.tokens(&samples)).sum();
            micro_batches(&samples, families, budget).iter().map(size).collect::<Vec<usize>>()
        };
        assert_eq!(batches(&[50, 10, 40, 20, 30, 70], 1000), [110, 110]);
        assert_eq!(batches(&[50, 10, 40, 20, 30, 70], 109), [70, 50, 50, 50]);
        // Two would hold the tokens, but not the families.
        assert_eq!(batches(&[40, 40, 40], 60), [40, 40, 40]);
        assert_eq!(batches(&[90, 80, 10], 60), [90, 80, 10]);
        assert_eq!(batches(&[50], 1000), [50]);
        assert_eq!(batches(&[], 1000), [0; 0]);
    }
}
