//! The rules of plans, copies, weight sets and installs.

#![allow(clippy::unwrap_used, reason = "tests may panic, helpers of tests too")]

mod fixture;

use fixture::{
    BLOCK_TOKENS, SET, base, bits, draw, drawn_bits, logits, plain, plan, row, run, tensors, tokens,
};
use half::bf16;
use parl_kernels::KernelError;
use parl_kernels::backend::{Backend, Plan, PlanGroup, PlanRow, Sampling, SetId, Ticket};
use parl_kernels::cpu::{CpuBackend, Level};
use parl_kernels::shape::ModelShape;
use parl_kernels::weights::WeightSet;

fn refused(rows: Vec<PlanRow>, wanted: &str) {
    let mut backend = plain(&base(), 8);
    let error = backend.submit(&plan(rows.clone())).unwrap_err();
    assert!(matches!(error, KernelError::Plan(_)), "{error}");
    assert!(error.to_string().contains(wanted), "{error}");
    assert!(backend.logits(&plan(rows)).is_err());
}

#[test]
fn bad_rows_are_refused_by_name() {
    let shape = ModelShape { max_positions: 64, ..base() };
    refused(vec![row(&[], 0, &[0], None)], "group 0 row 0: there are no tokens");
    refused(vec![row(&[1], 0, &[8], None)], "block 8 is out of range 0..8");
    refused(vec![row(&[1], 0, &[0, 1, 99], None)], "block 99 is out of range");
    refused(vec![row(&[1; 17], 0, &[0], None)], "ends at position 17, its 1 blocks hold 16");
    refused(vec![row(&[1], 16, &[0], None)], "ends at position 17");
    refused(vec![row(&[1], 0, &[], None)], "its 0 blocks hold 0");
    refused(vec![row(&[5, 100], 0, &[0], None)], "token 100 is out of range 0..100");
    refused(vec![row(&[1], 0, &[3], None), row(&[1], 5, &[3], None)], "row 1: block 3 is written twice");
    refused(vec![row(&[1; 20], 0, &[3, 3], None)], "block 3 is written twice");
    refused(vec![row(&[1], 16, &[3, 4], None), row(&[1], 0, &[3], None)], "row 0: block 3 is read here");
    refused(vec![row(&[1], 16, &[3, 3], None)], "block 3 is read here");
    let mut backend = plain(&shape, 8);
    let error = backend.submit(&plan(vec![row(&[1; 65], 0, &[0, 1, 2, 3, 4], None)])).unwrap_err();
    assert!(error.to_string().contains("max_positions is 64"), "{error}");
    let error = backend.submit(&plan(vec![row(&[1], u32::MAX, &[0], None)])).unwrap_err();
    assert!(error.to_string().contains("max_positions"), "{error}");
}

#[test]
fn bad_copies_sets_tickets_draws_and_reservations_are_refused() {
    let mut backend = plain(&base(), 8);
    for copy in [(8, 0), (0, 8)] {
        let plan = Plan { copies: vec![copy], groups: Vec::new() };
        assert!(backend.submit(&plan).unwrap_err().to_string().contains("block 8 is out of range"));
    }
    let stranger = Plan { copies: Vec::new(), groups: vec![PlanGroup { set: SetId(7), rows: Vec::new() }] };
    assert!(backend.submit(&stranger).unwrap_err().to_string().contains("set 7 is not installed"));
    assert!(matches!(backend.collect(Ticket(99)), Err(KernelError::Plan(_))));
    let mut wish = draw(0, 0);
    wish.sampling = Sampling { temperature: -1.0, ..wish.sampling };
    let bad = plan(vec![row(&[1], 0, &[0], Some(wish))]);
    assert!(matches!(backend.submit(&bad), Err(KernelError::Sampling(_))));
    assert!(backend.reserve_kv(0, 16).is_err() && backend.reserve_kv(16, 0).is_err());
    // Nothing of the above broke anything; a ticket is collected once.
    let ticket = backend.submit(&plan(vec![row(&[1], 0, &[0], Some(draw(0, 1)))])).unwrap();
    assert!(backend.collect(ticket).is_ok() && backend.collect(ticket).is_err());
    backend.release(SET);
    assert!(backend.submit(&plan(Vec::new())).is_err());
}

#[test]
fn tickets_may_be_collected_in_any_order() {
    let mut backend = plain(&base(), 8);
    let plans = [1, 2].map(|t| plan(vec![row(&[t], 0, &[t], Some(draw(u64::from(t), 1)))]));
    let wanted = plans.each_ref().map(|p| run(&mut backend, p));
    let tickets = plans.each_ref().map(|p| backend.submit(p).unwrap());
    assert_eq!(backend.collect(tickets[1]).unwrap().draws.concat(), wanted[1]);
    assert_eq!(backend.collect(tickets[0]).unwrap().draws.concat(), wanted[0]);
}

#[test]
fn a_copied_block_continues_a_fork() {
    let shape = base();
    let mut backend = plain(&shape, 8);
    let (sequence, tail) = (tokens(&shape, 1, 20), tokens(&shape, 2, 9));
    run(&mut backend, &plan(vec![row(&sequence, 0, &[0, 1], None)]));
    let own = row(&tail, 20, &[0, 1], None);
    let fork = Plan { copies: vec![(1, 5)], ..plan(vec![own.clone(), row(&tail, 20, &[0, 5], None)]) };
    let both = logits(&mut backend, &fork);
    assert_eq!(bits(&both[0]), bits(&both[1]));
    // Without the copy the fork would read a block that nobody wrote.
    let mut fresh = plain(&shape, 8);
    run(&mut fresh, &plan(vec![row(&sequence, 0, &[0, 1], None)]));
    let blind = logits(&mut fresh, &plan(vec![own, row(&tail, 20, &[0, 5], None)]));
    assert_ne!(bits(&blind[0]), bits(&blind[1]));
}

#[test]
fn sets_of_differing_shapes_work_side_by_side() {
    let shapes = [base(), ModelShape { layers: 2, head_dim: 32, vocab: 60, ..base() }, base()];
    let set = |i: usize| WeightSet::from_f32(shapes[i].clone(), 1, tensors(&shapes[i], i as u64)).unwrap();
    let wish = |i: usize| {
        let first = 3 * i as u32;
        row(&tokens(&shapes[i], 3, 30), 0, &[first, first + 1], Some(draw(i as u64, 30)))
    };
    let wanted: Vec<_> = (0..3)
        .map(|i| {
            let mut alone = CpuBackend::default();
            alone.install(SET, set(i)).unwrap();
            alone.reserve_kv(9, BLOCK_TOKENS).unwrap();
            drawn_bits(&run(&mut alone, &plan(vec![wish(i)])))[0]
        })
        .collect();
    let mut backend = CpuBackend::default();
    backend.reserve_kv(9, BLOCK_TOKENS).unwrap();
    let mut bytes = Vec::new();
    for i in 0..3 {
        let report = backend.install(SetId(i as u32), set(i)).unwrap();
        assert!(report.packed_bytes > 0 && report.pack_seconds > 0.0);
        bytes.push(backend.kv_block_bytes());
    }
    // 3 layers, K and V, 2 heads of 16 floats; a set of a geometry that is there already needs no more.
    assert_eq!(bytes, [3 * 2 * 2 * 16 * 16 * 4, (3 * 2 * 2 * 16 + 2 * 2 * 2 * 32) * 16 * 4, bytes[1]]);
    let groups = (0..3).map(|i| PlanGroup { set: SetId(i as u32), rows: vec![wish(i)] }).collect();
    let together = run(&mut backend, &Plan { copies: Vec::new(), groups });
    assert_eq!(drawn_bits(&together), wanted);
}

#[test]
fn replacing_weights_keeps_the_kv_and_drops_the_lease() {
    let shape = base();
    let mut backend = plain(&shape, 8);
    let sequence = tokens(&shape, 1, 20);
    run(&mut backend, &plan(vec![row(&sequence, 0, &[0, 1], None)]));
    let next = plan(vec![row(&[3], 20, &[0, 1], None)]);
    let before = logits(&mut backend, &next);
    let old = WeightSet::from_f32(shape.clone(), 1, tensors(&shape, 1)).unwrap();
    backend.install(SET, old.clone()).unwrap();
    assert_eq!(bits(&before[0]), bits(&logits(&mut backend, &next)[0]), "the same weights over the kept KV");
    assert!(old.holders() > 0);
    let held = old.holders();
    backend.install(SET, WeightSet::from_f32(shape.clone(), 2, tensors(&shape, 2)).unwrap()).unwrap();
    assert_ne!(bits(&before[0]), bits(&logits(&mut backend, &next)[0]));
    assert!(old.holders() < held);
    let last = WeightSet::from_f32(shape.clone(), 3, tensors(&shape, 1)).unwrap();
    backend.install(SET, last.clone()).unwrap();
    backend.release(SET);
    assert_eq!(last.holders(), 1);
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name_and_the_old_ones_stay() {
    for qk_norm in [false, true] {
        let shape = ModelShape { qk_norm, tied_head: !qk_norm, ..base() };
        let good = plan(vec![row(&[1, 2, 3], 0, &[0], Some(draw(0, 3)))]);
        for (name, _) in shape.tensors() {
            for stray in [f32::NAN, f32::INFINITY] {
                let mut backend = plain(&shape, 2);
                let before = run(&mut backend, &good);
                let mut all = tensors(&shape, 1);
                *all.get_mut(&name).unwrap().last_mut().unwrap() = stray;
                let low =
                    all.iter().map(|(k, v)| (k.clone(), v.iter().map(|&x| bf16::from_f32(x)).collect()));
                let low = WeightSet::from_bf16(shape.clone(), 2, low.collect()).unwrap();
                for set in [WeightSet::from_f32(shape.clone(), 2, all).unwrap(), low] {
                    let error = backend.install(SET, set).unwrap_err();
                    assert!(matches!(error, KernelError::Weights(_)));
                    assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
                }
                assert_eq!(run(&mut backend, &good), before);
            }
        }
    }
}

#[test]
fn logits_that_overflow_are_an_error_of_the_ticket() {
    let shape = base();
    let mut all = tensors(&shape, 1);
    all.get_mut("norm").unwrap().fill(f32::MAX);
    let weights = WeightSet::from_f32(shape, 1, all).unwrap();
    let mut backend = fixture::ready(Level::best(), weights, 2, BLOCK_TOKENS);
    let ticket = backend.submit(&plan(vec![row(&[1], 0, &[0], Some(draw(0, 1)))])).unwrap();
    assert!(matches!(backend.collect(ticket), Err(KernelError::Sampling(_))));
}
