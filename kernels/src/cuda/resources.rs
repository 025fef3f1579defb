//! What a kernel takes of a multiprocessor, read from the assembler's report.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Of one kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes that a thread stores to memory and loads again because registers ran out.
    pub spill_bytes: u32,
    /// Bytes of a thread's stack.
    pub stack_bytes: u32,
    /// Bytes of shared memory of a block.
    pub shared_bytes: u32,
}

/// Reads `ptxas -v` lines out of a compiler's log: kernels by name.
pub fn read(log: &str) -> BTreeMap<String, Resources> {
    let mut all = BTreeMap::new();
    let mut name = String::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            rest.split('\'').next().unwrap_or_default().clone_into(&mut name);
            all.insert(name.clone(), Resources::default());
        }
        let Some(kernel) = all.get_mut(&name) else { continue };
        let number = |unit: &str| -> Option<u32> {
            line.split_once(unit)?.0.rsplit([' ', ',']).find(|word| !word.is_empty())?.parse().ok()
        };
        kernel.registers = number(" registers").unwrap_or(kernel.registers);
        kernel.stack_bytes = number(" bytes stack frame").unwrap_or(kernel.stack_bytes);
        kernel.shared_bytes = number(" bytes smem").unwrap_or(kernel.shared_bytes);
        let spills =
            [" bytes spill stores", " bytes spill loads"].into_iter().filter_map(number).sum::<u32>();
        kernel.spill_bytes += spills;
    }
    all
}

impl Resources {
    /// What of this is above `bound`, in words.
    pub fn above(&self, bound: &Self) -> Vec<String> {
        let pairs = [
            ("registers", self.registers, bound.registers),
            ("bytes of spills", self.spill_bytes, bound.spill_bytes),
            ("bytes of stack", self.stack_bytes, bound.stack_bytes),
            ("bytes of shared memory", self.shared_bytes, bound.shared_bytes),
        ];
        let above = pairs.into_iter().filter(|(_, found, bound)| found > bound);
        above.map(|(what, found, bound)| format!("{found} {what}, the bound is {bound}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_assemblers_report() {
        let log = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'draw' for 'sm_80'
ptxas info    : Function properties for draw
ptxas         .     24 bytes stack frame, 32 bytes spill stores, 28 bytes spill loads
ptxas info    : Used 161 registers, used 1 barriers, 24 bytes cumulative stack size, 18432 bytes smem, 432 bytes cmem[0]
ptxas info    : Compiling entry function 'embed' for 'sm_80'
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 14 registers, used 0 barriers, 388 bytes cmem[0]
";
        let draw = Resources { registers: 161, spill_bytes: 60, stack_bytes: 24, shared_bytes: 18432 };
        let embed = Resources { registers: 14, ..Resources::default() };
        assert_eq!(read(log), [("draw".to_owned(), draw), ("embed".to_owned(), embed)].into());
        assert_eq!(read("nothing of the kind"), BTreeMap::new());
        assert!(embed.above(&draw).is_empty());
        assert_eq!(draw.above(&Resources { registers: 160, ..draw }), ["161 registers, the bound is 160"]);
    }
}
