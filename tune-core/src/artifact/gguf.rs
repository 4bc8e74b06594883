//! A GGUF file that a model or an adapter becomes, with what is beside it: a Modelfile, a receipt, and an importance matrix where one
//! is made for it.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Aside, Columns, Source, Target, Written};
use crate::checkpoint::gguf::adapter::AdapterExport;
use crate::checkpoint::gguf::{Export, FileKind, modelfile};
use crate::checkpoint::human;
use crate::checkpoint::merge::Merged;
use crate::words::count;
use crate::{Error, Result};

/// A file that can be written. Everything was looked at that can be before that.
#[derive(Debug)]
pub struct GgufFile<'m> {
    to: PathBuf,
    /// What the model is called in it.
    name: String,
    source: &'m Source,
    merged: &'m Merged,
    target: Target<'m>,
    bytes: u64,
    columns: Option<Columns>,
}

impl<'m> GgufFile<'m> {
    /// The whole model, adapters merged in, as the file `to` of this kind, in which the model has that `name`, by default the file's.
    /// Errors count by `columns` where there are some.
    ///
    /// # Errors
    /// A name that is no GGUF file's or is taken, a model that the format cannot hold, an importance matrix of another model, too little
    /// room.
    pub fn of_model(
        to: &Path,
        (source, merged): (&'m Source, &'m Merged),
        kind: FileKind,
        name: Option<&str>,
        columns: Option<Columns>,
    ) -> Result<Self> {
        let stem = stem(to)?;
        let name = name.map_or(stem, str::to_owned);
        let export = match &columns {
            None => Export::new(merged, kind, &name)?,
            Some(columns) => columns.export(merged, kind, &name)?,
        };
        let bytes = export.bytes();
        Self { to: to.to_owned(), name, source, merged, target: Target::Gguf(export), bytes, columns }.checked()
    }

    /// The adapter alone, the only one of `source`, for its base.
    ///
    /// # Errors
    /// A name that is no GGUF file's or is taken, a kind that adapters do not have, too little room.
    pub fn of_adapter(to: &Path, (source, merged): (&'m Source, &'m Merged), kind: FileKind) -> Result<Self> {
        let name = stem(to)?;
        let [adapter] = source.parts.as_slice() else {
            return Err(Error::setup("an adapter's file is made of one adapter: merge several into their base"));
        };
        let export = AdapterExport::new(&adapter.dir, &merged.spec_of_base(), kind)?;
        let bytes = export.bytes();
        let target = Target::Adapter(export, kind);
        Self { to: to.to_owned(), name, source, merged, target, bytes, columns: None }.checked()
    }

    fn checked(self) -> Result<Self> {
        Aside::check(&self.to, self.bytes)?;
        let modelfile = self.modelfile();
        let besides = [Some(modelfile.as_path()), self.columns.as_ref().and_then(Columns::beside)];
        if let Some(there) = besides.into_iter().flatten().find(|path| path.exists()) {
            return Err(Error::file(
                there,
                "is there already, and nothing is written over: choose another name, or remove it",
            ));
        }
        Ok(self)
    }

    /// What it is made of and what it will be, a line each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("base      {}", self.source.base.display())];
        lines.extend(self.merged.parts().map(|part| format!("adapter   {}", part.shown())));
        if let (Some(columns), Target::Gguf(export)) = (&self.columns, &self.target) {
            lines.push(columns.line(export));
        }
        lines.push(format!("writes    {}, {} as {}", self.to.display(), human(self.bytes), shown(&self.target)));
        lines
    }

    /// Writes it aside, with its Modelfile; what is found on the way, in lines. `told` is given the number of chunks of text that the
    /// model was run over, where that is to be done, and that of all at most.
    ///
    /// # Errors
    /// Weights that cannot be read, a full disk, text that the model cannot be run over.
    pub fn write(mut self, told: &mut dyn FnMut(usize, usize)) -> Result<(Written<'m>, Vec<String>)> {
        let aside = Aside::begin(&self.to, self.bytes)?;
        let (mut origin, mut lines) = (None, Vec::new());
        if let (Some(columns), Target::Gguf(export)) = (&mut self.columns, &mut self.target) {
            let made = columns.make(self.merged, &aside, told)?;
            if made.is_some() {
                *export = columns.export(self.merged, export.kind(), &self.name)?;
            }
            origin = Some(columns.origin(&aside, made.is_some())?);
            lines.extend(made);
        }
        match &self.target {
            Target::Gguf(export) => export.write(&aside.path())?,
            Target::Adapter(export, _) => export.write(&aside.path())?,
            Target::Folder(_) => return Err(Error::setup("a folder is no GGUF file")),
        }
        let modelfile = self.modelfile();
        let own = aside.beside(&modelfile.file_name().unwrap_or_default().to_string_lossy());
        fs::write(&own, self.text_of_modelfile()).map_err(Error::io("write", &own))?;
        let of = (self.source, self.merged);
        Ok((Written::new(aside, &self.to, of, self.target, origin), lines))
    }

    /// The Modelfile, by which Ollama takes the file: `model.Modelfile` for `model.gguf`.
    #[must_use]
    pub fn modelfile(&self) -> PathBuf {
        self.to.with_extension("Modelfile")
    }

    fn text_of_modelfile(&self) -> String {
        let base = self.source.base.display().to_string();
        let base = matches!(self.target, Target::Adapter(..)).then_some(base.as_str());
        modelfile(&self.to.file_name().unwrap_or_default().to_string_lossy(), base, self.merged.tokenizer())
    }
}

/// The formats of a file's tensors.
fn shown(target: &Target<'_>) -> String {
    let Target::Gguf(export) = target else { return target.weights().to_owned() };
    let formats: Vec<String> =
        export.formats().iter().map(|(name, n)| format!("{} {name}", count(*n, "tensor"))).collect();
    format!("{} ({})", export.kind().name(), formats.join(", "))
}

/// The file's name without `.gguf`.
fn stem(to: &Path) -> Result<String> {
    let name = to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match name.strip_suffix(".gguf") {
        Some(stem) if !stem.is_empty() => Ok(stem.to_owned()),
        _ => Err(Error::file(to, "the name of a GGUF file ends in .gguf")),
    }
}
