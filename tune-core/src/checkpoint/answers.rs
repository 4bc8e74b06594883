//! What a reference model said before a run's first step, kept beside the run's checkpoints: a run that is resumed does not ask again.
//!
//! A file in the safetensors format. It has the samples' keys in `sample` (U64, `[samples]`), the reference model's log-probability of
//! each in `log_prob` (F64, `[samples]`), what both were made of in `inputs` (U8, JSON) and the CRC-32C of the bytes of these three, in
//! this order, in `crc32c` (U32, `[1]`).

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::durable::sync_dir;
use super::run::PARTIAL;
use super::safetensors::{self, Raw};
use crate::{Error, Result};

const FILE: &str = "reference_answers.safetensors";

/// See the [module](self).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KeptAnswers {
    /// The numbers that stand for data and models, as in [`TrainingState::inputs`](super::state::TrainingState::inputs).
    pub(crate) inputs: BTreeMap<String, u32>,
    /// What the reference model said of each sample, by its key.
    pub(crate) said: BTreeMap<u64, f64>,
}

impl KeptAnswers {
    /// Those in a run's folder, if there are any.
    ///
    /// # Errors
    /// A file that is not as it was written, or cannot be read.
    pub(crate) fn read(output_dir: &Path) -> Result<Option<Self>> {
        let path = output_dir.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let damaged = || Error::file(&path, "is damaged: it is not what a run wrote there");
        let entries = safetensors::open(&path)?;
        let tensor = |name: &str, dtype: &str| {
            let entry = entries.get(name).filter(|entry| entry.is(dtype, 1)).ok_or_else(damaged)?;
            Ok::<_, Error>((entry, entry.shape()[0]))
        };
        let ((keys, samples), (log_probs, numbers)) = (tensor("sample", "U64")?, tensor("log_prob", "F64")?);
        let ((inputs, len), (sum, sums)) = (tensor("inputs", "U8")?, tensor("crc32c", "U32")?);
        if samples != numbers || sums != 1 {
            return Err(damaged());
        }
        let (mut of_keys, mut of_samples) = (vec![0u64; samples], vec![0f64; samples]);
        let (mut of_inputs, mut of_sum) = (vec![0u8; len], [0u32]);
        keys.read_raw(0, &mut of_keys)?;
        log_probs.read_raw(0, &mut of_samples)?;
        inputs.read_raw(0, &mut of_inputs)?;
        sum.read_raw(0, &mut of_sum)?;
        if of_sum != [crc32c(&of_keys, &of_samples, &of_inputs)] {
            return Err(damaged());
        }
        let inputs = serde_json::from_slice(&of_inputs).map_err(|_| damaged())?;
        Ok(Some(Self { inputs, said: of_keys.into_iter().zip(of_samples).collect() }))
    }

    /// Writes them into a run's folder, in the place of others.
    ///
    /// # Errors
    /// A folder that cannot be written. What was there is there still.
    pub(crate) fn write(&self, output_dir: &Path) -> Result<()> {
        let (path, aside) = (output_dir.join(FILE), output_dir.join(format!("{PARTIAL}{FILE}")));
        let (keys, log_probs): (Vec<u64>, Vec<f64>) = self.said.iter().unzip();
        let inputs = serde_json::to_vec(&self.inputs).map_err(|e| Error::Other(Box::new(e)))?;
        let sum = [crc32c(&keys, &log_probs, &inputs)];
        let of = |name, dtype, len, bytes| Raw { name, dtype, shape: vec![len], bytes };
        let written = safetensors::write_raw(
            &aside,
            &[
                of("sample", "U64", keys.len(), bytemuck::cast_slice(&keys)),
                of("log_prob", "F64", log_probs.len(), bytemuck::cast_slice(&log_probs)),
                of("crc32c", "U32", 1, bytemuck::cast_slice(&sum)),
                of("inputs", "U8", inputs.len(), &inputs),
            ],
        );
        let named = written.and_then(|()| fs::rename(&aside, &path).map_err(Error::io("rename", &aside)));
        if named.is_err() {
            // What stays is written over by the next attempt.
            let _ = fs::remove_file(&aside);
        }
        named?;
        sync_dir(output_dir)
    }

    /// Removes those of an earlier run from a folder.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub(crate) fn remove(output_dir: &Path) -> Result<()> {
        let path = output_dir.join(FILE);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", &path)(e)),
            _ => Ok(()),
        }
    }
}

/// That of all there is to know.
fn crc32c(keys: &[u64], log_probs: &[f64], inputs: &[u8]) -> u32 {
    let parts: [&[u8]; 3] = [bytemuck::cast_slice(keys), bytemuck::cast_slice(log_probs), inputs];
    parts.into_iter().fold(0, crc32c::crc32c_append)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> KeptAnswers {
        KeptAnswers {
            inputs: [("the base model".to_owned(), 7), ("the training data".to_owned(), u32::MAX)].into(),
            said: [(3, -1.5), (u64::MAX, f64::from_bits(0xc000_0000_0000_0001)), (9, -0.0)].into(),
        }
    }

    #[test]
    fn what_was_written_is_read_to_the_bit() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(KeptAnswers::read(dir.path()).unwrap(), None);
        kept().write(dir.path()).unwrap();
        let read = KeptAnswers::read(dir.path()).unwrap().unwrap();
        let bits = |kept: &KeptAnswers| kept.said.iter().map(|(key, said)| (*key, said.to_bits())).collect::<Vec<_>>();
        assert_eq!((&read, bits(&read)), (&kept(), bits(&kept())));
        // Others take their place, and nothing is left beside them.
        let others = KeptAnswers { said: [(1, -2.0)].into(), ..kept() };
        others.write(dir.path()).unwrap();
        assert_eq!(KeptAnswers::read(dir.path()).unwrap(), Some(others));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        KeptAnswers::remove(dir.path()).unwrap();
        KeptAnswers::remove(dir.path()).unwrap();
        assert_eq!(KeptAnswers::read(dir.path()).unwrap(), None);
    }

    /// Wherever the file ends, and whichever bit is another: it is no file, or says the same.
    #[test]
    fn a_file_that_is_torn_or_damaged_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        kept().write(dir.path()).unwrap();
        let whole = fs::read(&path).unwrap();
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            assert!(KeptAnswers::read(dir.path()).is_err(), "{len} of {} bytes", whole.len());
        }
        for bit in 0..8 * whole.len() {
            let mut other = whole.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, other).unwrap();
            if let Ok(read) = KeptAnswers::read(dir.path()) {
                assert_eq!(read, Some(kept()), "bit {bit}");
            }
        }
    }
}
