//! What there is to train with on this machine, and what is missing.

use std::fmt;
use std::path::Path;

use tune_cuda::{Card, Context, Driver};

use crate::checkpoint::free_bytes;
use crate::kernels::Isa;
use crate::memory::{available, size};
use crate::memory_plan::processor;

/// What of a machine matters for training: a name and some lines each, for `tune doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examination {
    facts: Vec<(&'static str, Vec<String>)>,
    /// What is missing, each with what gets it.
    missing: Vec<String>,
}

impl Examination {
    /// Looks at this machine. `folders` are places where much may be written, each with what it is for; whether cards can be used
    /// is tried.
    pub fn of_this_machine(folders: &[(&str, &Path)]) -> Self {
        let mut all = Self { facts: Vec::new(), missing: Vec::new() };
        all.processor();
        all.memory();
        all.disk(folders);
        all.cards();
        all
    }

    fn fact(&mut self, name: &'static str, lines: impl IntoIterator<Item = String>) {
        self.facts.push((name, lines.into_iter().collect()));
    }

    fn processor(&mut self) {
        let (features, kernels) = (Isa::features(), Isa::get());
        let listed = if features.is_empty() { "none that kernels ask for".to_owned() } else { features.join(", ") };
        self.fact("processor", [processor(), format!("it has {listed}; kernels of {kernels} are used")]);
        if let Err(error) = Isa::check() {
            self.missing.push(error.to_string());
        } else if let Some(why) = Isa::refused_units() {
            self.missing.push(format!("{why}: bf16 is computed without them"));
        }
    }

    fn memory(&mut self) {
        let line = match available() {
            Ok(Some(available)) => available.to_string(),
            Ok(None) => "the system does not tell".to_owned(),
            Err(error) => {
                self.missing.push(error.to_string());
                "see below".to_owned()
            }
        };
        self.fact("memory", [line]);
    }

    fn disk(&mut self, folders: &[(&str, &Path)]) {
        let line = |(what, folder): &(&str, &Path)| {
            // What is not there yet will be made where its first parent is.
            let there = folder.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("."));
            let free = free_bytes(there)
                .map_or_else(|| "the system does not tell".to_owned(), |free| format!("{} free", size(free)));
            format!("{free} for {what}: {}", folder.display())
        };
        self.fact("disk", folders.iter().map(line).collect::<Vec<_>>());
    }

    fn cards(&mut self) {
        let driver = match Driver::probe() {
            Ok(driver) => driver,
            Err(error) => {
                self.fact("driver", ["none that can be used; the processor trains".to_owned()]);
                return self.missing.push(error.to_string());
            }
        };
        self.fact("driver", [format!("it speaks CUDA {}", driver.version)]);
        let libraries = tune_cuda::open_cublaslt();
        let lines: Vec<String> = driver.cards.iter().map(|card| self.card(card, libraries.is_ok())).collect();
        self.fact("cards", lines);
        self.fact("cuBLASLt", [libraries.as_ref().map_or_else(|_| "not found".to_owned(), ToString::to_string)]);
        self.missing.extend(libraries.err().map(|error| error.to_string()));
        let nccl = tune_cuda::open_nccl();
        let several = driver.cards.len() > 1;
        let without = if several { "not found" } else { "not found, and not needed for one card" };
        self.fact("NCCL", [nccl.as_ref().map_or_else(|_| without.to_owned(), ToString::to_string)]);
        self.missing.extend(nccl.err().filter(|_| several).map(|error| error.to_string()));
    }

    /// A line on a card; opens it where that can be.
    fn card(&mut self, card: &Card, has_libraries: bool) -> String {
        let mut line = format!(
            "cuda:{} {}, compute capability {}, {} multiprocessors, {}",
            card.ordinal,
            card.name,
            card.capability,
            card.multiprocessors,
            size(card.memory)
        );
        let opened = card.check().and_then(|()| has_libraries.then(|| Context::open(card.ordinal)).transpose());
        match opened {
            Ok(Some(context)) => line.push_str(&format!(", {} free", size(context.free()))),
            Ok(None) => {}
            Err(error) => self.missing.push(error.to_string()),
        }
        line
    }
}

impl fmt::Display for Examination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, lines) in &self.facts {
            for (i, line) in lines.iter().enumerate() {
                writeln!(f, "{:<12}{line}", if i == 0 { name } else { "" })?;
            }
        }
        if self.missing.is_empty() {
            return writeln!(f, "\nNothing is missing.");
        }
        writeln!(f, "\nMissing:")?;
        self.missing.iter().try_for_each(|line| writeln!(f, "- {line}"))
    }
}
