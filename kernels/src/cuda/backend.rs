//! The CUDA backend: plans become launches, in order, on one stream.

use std::collections::HashMap;
use std::time::Instant;

use super::buckets::{Bucket, bucket};
use super::driver::{Address, Driver, Launch, Pending, Types};
use super::launches::{Activations, Extent, MOST_ACROSS, SURVEYED, Surroundings, copy_blocks, splits};
use super::memory::{MemoryPlan, block_bytes, step_room};
use super::model::{Geometry, Model, aligned, check_finite, types_of};
use super::products::sums_room;
use super::step::{Layout, Limits, Outputs, Room, Step, copy_waves, cut, room, words};
use crate::KernelError;
use crate::backend::{Backend, Drawn, InstallReport, Output, Plan, PlanRow, SetId, Ticket};
use crate::plan::{Reserved, Writers, check};
use crate::weights::{Dtype, WeightSet};

/// Most copies of a launch; a word for each tensor of a model fits in the same place.
const MOST_COPIES: usize = 4096;

/// Parts of the workspace: the activations, then a step's data and copies.
const PARTS: usize = 14;

/// Blocks of one geometry.
struct Pool {
    geometry: Geometry,
    address: Address,
    block_bytes: u64,
}

/// Memory that steps work in.
#[derive(Default)]
struct Workspace {
    /// Bytes of each part.
    parts: [u64; PARTS],
    address: Address,
    activations: Activations,
    step: Address,
    copies: Address,
}

/// What a step drew: for which rows of a group, and where it will be.
struct Part {
    group: usize,
    rows: Vec<usize>,
    pending: Pending,
}

/// A plan that was submitted.
struct Open {
    rows: Vec<usize>,
    parts: Vec<Part>,
}

/// Inference on a card.
pub struct CudaBackend<D: Driver> {
    driver: D,
    limits: Limits,
    kv_fp8: bool,
    models: HashMap<SetId, Model>,
    pools: Vec<Pool>,
    workspace: Workspace,
    reserved: Reserved,
    writers: Writers,
    open: HashMap<Ticket, Open>,
    next: u64,
}

impl<D: Driver> std::fmt::Debug for CudaBackend<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaBackend").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Workspace {
    /// Bytes of each part for models of one shape.
    fn parts(model: &Model, limits: Limits, block_tokens: usize, library: bool) -> [u64; PARTS] {
        let (shape, bf16) = (&model.shape, model.types.element == Dtype::Bf16);
        let (tokens, rows, each) = (limits.tokens as u64, limits.rows as u64, model.types.element_bytes());
        let (hidden, inner) = (shape.hidden as u64, (shape.heads * shape.head_dim) as u64);
        let states = rows * (shape.heads * splits(shape.max_positions).next_power_of_two()) as u64;
        [
            tokens * hidden * 4,
            tokens * hidden * each,
            sums_room(shape, limits.tokens, bf16) as u64 * 4,
            tokens * inner * each,
            tokens * inner * each,
            if bf16 && !library { 0 } else { tokens * 2 * shape.ffn as u64 * 4 },
            tokens * shape.ffn as u64 * each,
            rows * shape.vocab as u64 * 4,
            states * 8,
            states * shape.head_dim as u64 * 4,
            rows * SURVEYED as u64 * 16,
            rows * 16,
            Layout::new(step_room(shape, limits, block_tokens)).words as u64 * 4,
            8 + MOST_COPIES as u64 * 8,
        ]
        .map(aligned)
    }

    fn at(parts: [u64; PARTS], address: Address) -> Self {
        let mut next = address;
        let places = parts.map(|bytes| {
            next += bytes;
            next - bytes
        });
        let [
            hidden,
            normed,
            sums,
            queries,
            attended,
            gate_up,
            gated,
            logits,
            shares,
            partial,
            survey,
            drawn,
            step,
            copies,
        ] = places;
        let activations = Activations {
            hidden,
            normed,
            sums,
            queries,
            attended,
            gate_up,
            gated,
            logits,
            shares,
            partial,
            survey,
            drawn,
        };
        Self { parts, address, activations, step, copies }
    }
}

/// Says what memory was for that the driver did not have, though by the plan it was there.
fn of_line(error: KernelError, line: &str, lower: &str) -> KernelError {
    match error {
        KernelError::Memory(text) => KernelError::Memory(format!("{text}; it was for {line}: {lower}")),
        other => other,
    }
}

impl<D: Driver> CudaBackend<D> {
    /// A backend without weights, whose steps keep within `limits`.
    ///
    /// # Errors
    /// [`KernelError::Plan`] for limits out of bounds.
    pub fn new(driver: D, limits: Limits) -> Result<Self, KernelError> {
        let Limits { tokens, rows } = limits;
        for (name, value) in [("tokens", tokens), ("rows", rows)] {
            if !(1..=MOST_ACROSS).contains(&value) {
                return Err(KernelError::Plan(format!(
                    "{name} of a step are {value}, must be in 1..={MOST_ACROSS}"
                )));
            }
        }
        Ok(Self {
            driver,
            limits,
            kv_fp8: false,
            models: HashMap::new(),
            pools: Vec::new(),
            workspace: Workspace::default(),
            reserved: Reserved { blocks: 0, block_tokens: 1 },
            writers: Writers::default(),
            open: HashMap::new(),
            next: 0,
        })
    }

    /// Keeps keys and values in fp8, half of bf16's bytes; to be called before the first install.
    pub fn keep_fp8(&mut self) {
        self.kv_fp8 = true;
    }

    /// The driver, for a test to look at.
    pub fn driver(&mut self) -> &mut D {
        &mut self.driver
    }

    /// What memory a set of weights needs, and steps with them.
    fn plan_memory(&self, weights: &WeightSet, types: Types) -> MemoryPlan {
        let Reserved { blocks, block_tokens } = self.reserved;
        let shape = weights.shape();
        let mut plan = MemoryPlan::default();
        if weights.on_card("embed").is_none() {
            plan.weights("the set", shape, types.element);
        }
        let library = self.driver.has_library();
        plan.steps(shape, types.element, self.limits, block_tokens as usize, library);
        if !self.pools.iter().any(|p| p.geometry == Geometry::of(shape, types)) {
            plan.keys_values(shape, types, blocks, block_tokens);
        }
        plan
    }

    /// Gives every model a pool and a workspace to step in, and takes back what none needs.
    fn fit(&mut self) -> Result<(), KernelError> {
        let wanted: Vec<Geometry> = self.models.values().map(|m| Geometry::of(&m.shape, m.types)).collect();
        for pool in self.pools.extract_if(.., |p| !wanted.contains(&p.geometry)) {
            self.driver.free(pool.address);
        }
        let Reserved { blocks, block_tokens } = self.reserved;
        for model in self.models.values() {
            let geometry = Geometry::of(&model.shape, model.types);
            if blocks > 0 && !self.pools.iter().any(|p| p.geometry == geometry) {
                let block_bytes = block_bytes(&model.shape, model.types, block_tokens);
                let address = self
                    .driver
                    .allocate(u64::from(blocks) * block_bytes)
                    .map_err(|e| of_line(e, "keys and values", "lower rollout.engine.kv_blocks"))?;
                self.pools.push(Pool { geometry, address, block_bytes });
            }
        }
        let (mut parts, library) = ([0; PARTS], self.driver.has_library());
        for model in self.models.values() {
            let own = Workspace::parts(model, self.limits, block_tokens as usize, library);
            parts = std::array::from_fn(|i| parts[i].max(own[i]));
        }
        if parts.iter().zip(&self.workspace.parts).any(|(wanted, there)| wanted > there) {
            if self.workspace.address != 0 {
                self.driver.free(self.workspace.address);
            }
            self.workspace = Workspace::default();
            for model in self.models.values_mut() {
                model.forget_graphs(&mut self.driver);
            }
            let lower = "lower rollout.engine.max_batch_tokens or rollout.engine.max_running";
            let address = self
                .driver
                .allocate(parts.iter().sum())
                .map_err(|e| of_line(e, "the engine's activations", lower))?;
            self.workspace = Workspace::at(parts, address);
        }
        Ok(())
    }

    /// Checks the plan, and makes its copies.
    fn begin(&mut self, plan: &Plan) -> Result<(), KernelError> {
        let models = &self.models;
        let shape = |set: &SetId| models.get(set).filter(|m| m.lease.is_some()).map(|m| &m.shape);
        check(plan, self.reserved, shape, &mut self.writers)?;
        let Some(kernels) = self.models.values().map(|m| m.kernels).next() else { return Ok(()) };
        for wave in copy_waves(&plan.copies, MOST_COPIES) {
            let pairs = wave.iter().flat_map(|&(from, to)| [from, to]);
            let data: Vec<u32> = [wave.len() as u32, 0].into_iter().chain(pairs).collect();
            self.driver.upload(self.workspace.copies, bytemuck::cast_slice(&data))?;
            for pool in &self.pools {
                let layers = pool.geometry.layers;
                let launch = copy_blocks(
                    self.workspace.copies,
                    wave.len(),
                    pool.address,
                    (self.reserved.blocks, layers),
                    pool.block_bytes / layers as u64,
                );
                self.driver.launch(kernels, &launch)?;
            }
        }
        Ok(())
    }

    /// Runs a step of checked rows; the draws or the logits are then on the card. Returns how many outputs there are.
    fn step(
        &mut self,
        set: SetId,
        step: &Step,
        rows: &[PlanRow],
        outputs: Outputs,
    ) -> Result<usize, KernelError> {
        let block_tokens = self.reserved.block_tokens;
        let unknown = || KernelError::Plan(format!("set {} has no KV blocks", set.0));
        let model = self.models.get_mut(&set).ok_or_else(unknown)?;
        let geometry = Geometry::of(&model.shape, model.types);
        let pool = self.pools.iter().find(|p| p.geometry == geometry).ok_or_else(unknown)?.address;
        let group = model.shape.heads / model.shape.kv_heads;
        let needs = room(step, rows, group, block_tokens as usize, outputs);
        let positions = |p: &super::step::Piece| rows[p.row].start as usize + p.first + p.tokens;
        let longest = step.pieces.iter().filter(|p| p.tokens == 1).map(positions).max();

        let decode = step.decode_rows() == step.pieces.len() && outputs == Outputs::Draws;
        let bucket = longest
            .filter(|_| decode)
            .map(|longest| bucket(step.pieces.len(), longest, self.limits.rows.min(self.limits.tokens)));
        let (layout, extent) = if let Some(Bucket { rows, splits }) = bucket {
            let blocks = rows * model.shape.max_positions.div_ceil(block_tokens as usize);
            let layout = Layout::new(Room { tokens: rows, rows, tiles: 0, outputs: rows, blocks });
            (layout, Extent { tokens: rows, decode_rows: rows, splits, tiles: 0, outputs: rows })
        } else {
            let extent = Extent {
                tokens: needs.tokens,
                decode_rows: step.decode_rows(),
                splits: splits(longest.unwrap_or(1)),
                tiles: needs.tiles,
                outputs: needs.outputs,
            };
            (Layout::new(needs), extent)
        };
        let data = words(step, rows, group, block_tokens as usize, outputs, &layout);
        self.driver.upload(self.workspace.step, bytemuck::cast_slice(&data))?;

        let surroundings = Surroundings {
            shape: &model.shape,
            model: &model.addresses,
            activations: &self.workspace.activations,
            pool,
            blocks: self.reserved,
            step: self.workspace.step,
            layout,
            types: model.types,
            library: self.driver.has_library(),
            chip: self.driver.chip(),
        };
        let launches = || -> Vec<Launch> {
            let mut all = surroundings.layers(extent);
            if extent.outputs > 0 {
                all.push(surroundings.head(extent.outputs));
                if outputs == Outputs::Draws {
                    all.extend(surroundings.draw(extent.outputs));
                }
            }
            all
        };
        // A library may load kernels at their first use, which must not be while a graph is captured.
        let first = self.driver.has_library() && bucket.is_some_and(|bucket| model.met.insert(bucket));
        let Some(bucket) = bucket.filter(|_| !first) else {
            for launch in launches() {
                self.driver.launch(model.kernels, &launch)?;
            }
            return Ok(needs.outputs);
        };
        let graph = if let Some(&graph) = model.graphs.get(&bucket) {
            graph
        } else {
            let all = launches();
            self.driver.begin_capture()?;
            let captured = all.iter().try_for_each(|launch| self.driver.launch(model.kernels, launch));
            // Whatever happened, the stream must not go on capturing.
            let graph = self.driver.end_capture()?;
            if let Err(error) = captured {
                self.driver.forget(graph);
                return Err(error);
            }
            model.graphs.insert(bucket, graph);
            graph
        };
        self.driver.replay(graph)?;
        Ok(needs.outputs)
    }

    fn remove(&mut self, set: SetId) {
        if let Some(model) = self.models.remove(&set) {
            model.drop_from(&mut self.driver);
        }
    }
}

impl<D: Driver> Drop for CudaBackend<D> {
    fn drop(&mut self) {
        for (_, model) in self.models.drain() {
            model.drop_from(&mut self.driver);
        }
        for pool in self.pools.drain(..) {
            self.driver.free(pool.address);
        }
        if self.workspace.address != 0 {
            self.driver.free(self.workspace.address);
        }
    }
}

impl<D: Driver> Backend for CudaBackend<D> {
    fn install(&mut self, set: SetId, weights: WeightSet) -> Result<InstallReport, KernelError> {
        let start = Instant::now();
        let types = types_of(&weights, self.kv_fp8)?;
        let kernels = self.driver.kernels(types, weights.shape().head_dim)?;
        self.driver.join()?;
        check_finite(&mut self.driver, kernels, &weights)?;
        let report =
            |packed_bytes: u64| InstallReport { packed_bytes, pack_seconds: start.elapsed().as_secs_f64() };
        if let Some(model) = self.models.get_mut(&set).filter(|m| m.fits(&weights)) {
            model.lease = Some(weights);
            return Ok(report(0));
        }
        let mut free = self.driver.free_bytes()? + self.workspace.parts.iter().sum::<u64>();
        if let Some(old) = self.models.get(&set).filter(|m| m.copied()) {
            free += old.lease.as_ref().map_or(0, |lease| Model::memory_bytes(lease, old.types));
        }
        self.plan_memory(&weights, types).check(free)?;
        self.remove(set);
        let bytes = Model::memory_bytes(&weights, types);
        let model = Model::new(&mut self.driver, kernels, weights, types)?;
        self.models.insert(set, model);
        if let Err(error) = self.fit() {
            self.remove(set);
            return Err(error);
        }
        Ok(report(bytes))
    }

    fn release(&mut self, set: SetId) {
        // A step under way may read the weights. What the driver has to say against waiting comes up at the next call.
        let _ = self.driver.synchronize();
        match self.models.get_mut(&set) {
            Some(model) if !model.copied() => model.lease = None,
            _ => self.remove(set),
        }
    }

    fn reserve_kv(&mut self, blocks: u32, block_tokens: u32) -> Result<(), KernelError> {
        self.reserved = Reserved::new(blocks, block_tokens)?;
        self.writers = Writers::default();
        for pool in self.pools.drain(..) {
            self.driver.free(pool.address);
        }
        for model in self.models.values_mut() {
            model.forget_graphs(&mut self.driver);
        }
        let (mut plan, mut counted) = (MemoryPlan::default(), Vec::new());
        for model in self.models.values() {
            let geometry = Geometry::of(&model.shape, model.types);
            if !counted.contains(&geometry) {
                counted.push(geometry);
                plan.keys_values(&model.shape, model.types, blocks, block_tokens);
            }
        }
        plan.check(self.driver.free_bytes()?)?;
        self.fit()
    }

    fn kv_block_bytes(&self) -> u64 {
        self.pools.iter().map(|p| p.block_bytes).sum()
    }

    fn submit(&mut self, plan: &Plan) -> Result<Ticket, KernelError> {
        self.begin(plan)?;
        let mut parts = Vec::new();
        for (group, planned) in plan.groups.iter().enumerate() {
            for step in cut(&planned.rows, self.limits) {
                let outputs = self.step(planned.set, &step, &planned.rows, Outputs::Draws)?;
                if outputs > 0 {
                    let pending =
                        self.driver.download(self.workspace.activations.drawn, 16 * outputs as u64)?;
                    let rows = step.pieces.iter().filter(|p| p.draws).map(|p| p.row).collect();
                    parts.push(Part { group, rows, pending });
                }
            }
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        let rows = plan.groups.iter().map(|g| g.rows.len()).collect();
        self.open.insert(ticket, Open { rows, parts });
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Output, KernelError> {
        let open = self
            .open
            .remove(&ticket)
            .ok_or_else(|| KernelError::Plan(format!("ticket {} is not open", ticket.0)))?;
        let mut draws: Vec<Vec<Option<Drawn>>> = open.rows.iter().map(|&rows| vec![None; rows]).collect();
        let mut strays = false;
        for part in open.parts {
            let bytes = self.driver.wait(part.pending)?;
            for (&row, record) in part.rows.iter().zip(bytes.chunks_exact(16)) {
                let word = |i: usize| u32::from_le_bytes(std::array::from_fn(|b| record[4 * i + b]));
                strays |= word(2) == 0;
                draws[part.group][row] = Some(Drawn { id: word(0), logprob: f32::from_bits(word(1)) });
            }
        }
        if strays {
            Err(KernelError::Sampling("a logit is not finite".to_owned()))
        } else {
            Ok(Output { draws })
        }
    }

    fn logits(&mut self, plan: &Plan) -> Result<Vec<Vec<Vec<Vec<f32>>>>, KernelError> {
        self.begin(plan)?;
        // There is room for the logits of as many tokens as rows.
        let limits = Limits { tokens: self.limits.tokens.min(self.limits.rows), ..self.limits };
        let mut all = Vec::with_capacity(plan.groups.len());
        for planned in &plan.groups {
            let mut of_group: Vec<Vec<Vec<f32>>> = vec![Vec::new(); planned.rows.len()];
            for step in cut(&planned.rows, limits) {
                let outputs = self.step(planned.set, &step, &planned.rows, Outputs::Every)?;
                let vocab = self.models.get(&planned.set).map_or(0, |m| m.shape.vocab);
                let bytes = (4 * outputs * vocab) as u64;
                let pending = self.driver.download(self.workspace.activations.logits, bytes)?;
                let found = self.driver.wait(pending)?;
                let mut found = found.chunks_exact(4 * vocab.max(1)).map(|bytes| {
                    let floats = bytes.chunks_exact(4);
                    floats.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect::<Vec<f32>>()
                });
                for piece in &step.pieces {
                    of_group[piece.row].extend(found.by_ref().take(piece.tokens));
                }
            }
            all.push(of_group);
        }
        Ok(all)
    }
}
