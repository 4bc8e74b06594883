//! Evaluation by EleutherAI's harness, `lm_eval`, which asks a server of the model.
//!
//!     cargo run --release -p recipes --bin eleuther_eval -- --config configs/eleuther_eval/tiny.yaml

use std::fs;
use std::io::{BufRead, BufReader, Read, pipe};
use std::process::{Child, Command, Stdio};

use tune_core::artifact::Source;
use tune_core::checkpoint::merge::{Merged, Part};
use tune_core::config::cli::{Exit, signals};
use tune_core::prelude::*;

/// Where the tables are written, in output_dir.
const TABLES: &str = "eleuther_eval.md";
/// What there has to be besides this project.
const INSTALL: &str = "pip install 'lm_eval[api]' transformers";
/// Seconds after which a request is given up: whole batches on a slow machine take their time, and nobody else asks.
const TIMEOUT: &str = "1000000";
/// Tokens of an answer where the task says nothing of them, as in the harness.
const MAX_ANSWER: usize = 256;

/// Measures a model on tasks of EleutherAI's harness, which is a program of its own: `lm_eval`.
#[recipe(configs = ["../configs/eleuther_eval/tiny.yaml", "../configs/eleuther_eval/eleuther_evaluation.yaml"])]
fn eleuther_eval(
    /// The model: a Hugging Face folder, a .gguf file, an adapter, a checkpoint, a run's folder, or hf://org/name.
    checkpoint_dir: PathBuf,
    /// A folder with a PEFT adapter for it, or hf://org/name.
    adapter_dir: Option<PathBuf>,
    /// Tasks and groups of tasks; `lm_eval ls tasks` lists those that the harness brings along.
    #[config(one_or_many)]
    tasks: Vec<String>,
    /// A folder with tasks of your own.
    include_path: Option<PathBuf>,
    /// Take only N items of each task, or a share of them (below 1).
    #[config(range = 0.0..)]
    limit: Option<f64>,
    /// Solved examples in front of each item; null is as many as the task says.
    num_fewshot: Option<u64>,
    /// The most tokens of an item that the model reads; of a longer one it reads the end. Null is as many as it can read.
    #[config(range = 2..)]
    max_seq_length: Option<usize>,
    /// How many items are asked at a time.
    #[config(default = 8, range = 1..=1024)]
    batch_size: usize,
    /// Put the tokenizer's first special token in front of each item; null does what the tokenizer does by itself.
    add_bos_token: Option<bool>,
    /// Where the harness's drawing starts (examples in front of items); null leaves it to the harness.
    seed: Option<u64>,
    /// cpu, cuda, cuda:N, or auto: the first card, if there is one.
    #[config(default = "cpu")]
    device: DeviceConfig,
    /// Precision of weights and activations.
    #[config(default)]
    dtype: Precision,
    /// The table of results (eleuther_eval.md) and what else the harness writes go here; null writes nothing.
    output_dir: Option<PathBuf>,
    /// The harness's program: its file, or its name in PATH.
    #[config(default = "lm_eval")]
    lm_eval: PathBuf,
    /// What else it is told, such as `[--log_samples]`.
    #[config(default)]
    lm_eval_args: Vec<String>,
    /// The program that serves the model; by default `tune-serve` beside this one.
    server: Option<PathBuf>,
) -> Result<()> {
    if !init_process_group()?.is_single() {
        return Err(Error::setup("the model is served by one process: start one, without --nproc-per-node"));
    }
    hub::watch(Downloads::stderr());
    // All of it is looked at before a weight is read.
    let harness = Harness { program: program(&lm_eval)?, tasks, include_path };
    let server = server.map_or_else(beside, Ok)?;
    let precision = match dtype {
        Precision::Fp32 => "fp32",
        Precision::Bf16 => "bf16",
        Precision::Fp16 => return Err(Error::setup("dtype: a model is served in fp32 or bf16; set one of these")),
    };
    let parts: Vec<Part> = adapter_dir.into_iter().map(|dir| Part { dir, weight: 1.0 }).collect();
    let source = Source::find(&checkpoint_dir, None, &parts)?;
    let merged = source.open()?;
    let longest = longest(max_seq_length, &merged)?;
    harness.check()?;
    if let Some(dir) = &output_dir {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }

    let name = name_of(&checkpoint_dir);
    let of_token = merged.spec().kept_per_token() * dtype.dtype().size_in_bytes();
    let mut serve = Command::new(server);
    serve.arg(&source.base).args(source.parts.iter().flat_map(|part| [Path::new("--adapter"), &part.dir]));
    serve.args(["--name", &name, "--port", "0", "--until-stdin-ends", "--dtype", precision]);
    serve.args(["--device", &device.to_string(), "--max-sequences", &batch_size.to_string()]);
    serve.args(["--max-waiting", &batch_size.to_string(), "--max-answer", &longest.to_string()]);
    serve.args(["--cache-memory", &(batch_size * longest * of_token).to_string()]);
    // A token's number with what stands around it has fewer characters than this.
    serve.args(["--max-body", &((1 << 20) + 16 * batch_size * longest).to_string()]);
    serve.args(["--timeout", TIMEOUT, "--patience", "600"]).env_remove("TUNE_API_KEY");
    let mut server = Server::start(serve)?;
    // Not before: who presses Ctrl-C while the model is loaded leaves nothing behind. From here on everything is put away first.
    let _listening = signals::Listening::begin();
    let tokenizer = Folder::of_tokenizer(&merged)?;

    let mut ask = harness.command();
    ask.args(["--model", "local-completions", "--tasks", &harness.tasks.join(",")]).arg("--model_args").arg(format!(
        "model={name},base_url={}/completions,tokenizer={},tokenizer_backend=huggingface,num_concurrent=1,\
         timeout={TIMEOUT},max_length={longest},max_gen_toks={},add_bos_token={}",
        server.address,
        tokenizer.0.display(),
        MAX_ANSWER.min(longest / 2),
        add_bos_token.unwrap_or_else(|| merged.tokenizer().begins_with_bos())
    ));
    ask.args(["--batch_size", &batch_size.to_string()]);
    for (option, value) in [
        ("--limit", limit.map(|limit| limit.to_string())),
        ("--num_fewshot", num_fewshot.map(|number| number.to_string())),
        ("--seed", seed.map(|seed| seed.to_string())),
    ] {
        ask.args(value.iter().flat_map(|value| [option, value]));
    }
    ask.args(harness.include_path.iter().flat_map(|path| [Path::new("--include_path"), path]));
    ask.args(output_dir.iter().flat_map(|path| [Path::new("--output_path"), path])).args(&lm_eval_args);
    let said = answered(ask, &mut server)?;
    let tables: Vec<&str> = said.lines().skip_while(|line| !line.starts_with('|')).collect();
    if tables.is_empty() {
        return Err(Error::setup("lm_eval ended without a table of results; what it says is above"));
    }
    if let Some(dir) = &output_dir {
        let (path, tables) = (dir.join(TABLES), tables.join("\n"));
        fs::write(&path, format!("{}\n\n{}\n", source.shown(), tables.trim_end()))
            .map_err(Error::io("write", &path))?;
        say!("Results saved to {}", path.display());
    }
    Ok(())
}

/// EleutherAI's program, and the tasks that it is to know.
struct Harness {
    program: PathBuf,
    tasks: Vec<String>,
    include_path: Option<PathBuf>,
}

impl Harness {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.stdin(Stdio::null()).envs([("TOKENIZERS_PARALLELISM", "false"), ("PYTHONUNBUFFERED", "1")]);
        // Its requests stay on this machine, whatever proxy other programs use, and no key goes with them.
        let others = std::env::var("NO_PROXY").or_else(|_| std::env::var("no_proxy")).unwrap_or_default();
        let direct = format!("127.0.0.1,{others}");
        command.env("NO_PROXY", &direct).env("no_proxy", &direct).env_remove("OPENAI_API_KEY");
        command
    }

    /// Asks it whether there are such tasks. Patterns and files are left to the run; versions that cannot be asked (before 0.4.10) take
    /// the question for a wrong argument.
    fn check(&self) -> Result<()> {
        if self.tasks.is_empty() {
            return Err(Error::setup("tasks: there is none to measure the model on"));
        }
        if let Some(path) = self.include_path.as_ref().filter(|path| !path.is_dir()) {
            return Err(Error::file(path, "include_path is a folder with tasks, and there is none"));
        }
        let is_name = |task: &&str| !task.contains(['*', '?', '[', '/', '\\']) && !Path::new(task).exists();
        let names: Vec<&str> = self.tasks.iter().map(String::as_str).filter(is_name).collect();
        if names.is_empty() {
            return Ok(());
        }
        let mut question = self.command();
        question.args(["validate", "--tasks", &names.join(",")]);
        question.args(self.include_path.iter().flat_map(|path| [Path::new("--include_path"), path]));
        let output = question.output().map_err(Error::io("start", &self.program))?;
        if output.status.success() || output.status.code() == Some(2) {
            return Ok(());
        }
        let said = [output.stderr, output.stdout].map(|said| String::from_utf8_lossy(&said).trim().to_owned());
        match said[1].lines().find_map(|line| line.strip_prefix("Tasks not found: ")) {
            Some(missing) => Err(Error::setup(format!(
                "tasks: the harness does not know {missing}; `lm_eval ls tasks` lists its tasks, and include_path adds yours"
            ))),
            None => Err(Error::file(
                &self.program,
                format!(
                    "does not start: {}; `{INSTALL}` installs what it needs",
                    said[0].lines().last().unwrap_or("it does not say why")
                ),
            )),
        }
    }
}

/// A program's file: what was named, or what PATH has by that name.
fn program(named: &Path) -> Result<PathBuf> {
    let is_name = named.components().count() == 1 && named.file_name() == Some(named.as_os_str());
    let folders = std::env::var_os("PATH").filter(|_| is_name).unwrap_or_default();
    let file = format!("{}{}", named.display(), std::env::consts::EXE_SUFFIX);
    let in_path = std::env::split_paths(&folders).map(|folder| folder.join(&file)).find(|path| path.is_file());
    let there = in_path.or_else(|| Some(named.to_owned()).filter(|path| !is_name && path.is_file()));
    there.ok_or_else(|| {
        let named = named.display();
        let missing = if is_name { format!("there is no {named} in PATH") } else { format!("{named} is no file") };
        Error::setup(format!(
            "lm_eval: EleutherAI's harness is a program of its own, and {missing}: install it with\n  {INSTALL}\nor set \
             lm_eval=FILE to where it is"
        ))
    })
}

/// The server that was built with this program.
fn beside() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(Error::io("find", "this program"))?;
    let path = own.with_file_name(format!("tune-serve{}", std::env::consts::EXE_SUFFIX));
    let release = if own.parent().is_some_and(|folder| folder.ends_with("release")) { " --release" } else { "" };
    match path.is_file() {
        true => Ok(path),
        false => Err(Error::file(
            &path,
            format!("the program that serves the model is not there: `cargo build{release} -p tune-serve` builds it"),
        )),
    }
}

/// What the harness is told of the length. It asks for one token more than an item has, and scores the last one, which is never read:
/// with two more, it cuts items where it would if it computed the model itself.
fn longest(asked: Option<usize>, merged: &Merged) -> Result<usize> {
    let most = merged.spec().max_position_embeddings;
    match asked.filter(|&asked| asked > most) {
        Some(asked) => Err(Error::setup(format!(
            "max_seq_length is {asked}, and the model reads {most} tokens at most: set max_seq_length={most}, or null for that"
        ))),
        None => Ok(asked.map_or(most, |asked| most.min(asked + 2))),
    }
}

/// What the harness calls the model: in its arguments a comma ends a value, and a number is none.
fn name_of(model: &Path) -> String {
    let named = model.to_string_lossy();
    let model = std::path::absolute(model).unwrap_or_else(|_| model.to_owned());
    let own = if model.is_dir() { model.file_name() } else { model.file_stem() };
    let last = named.strip_prefix("hf://").map(Into::into).or_else(|| Some(own?.to_string_lossy())).unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_./".contains(c) { c } else { '_' };
    let name: String = last.chars().map(plain).collect();
    let is_value = name.parse::<f64>().is_ok() || ["", "true", "false", "none"].contains(&&*name.to_lowercase());
    if is_value { "model".to_owned() } else { name }
}

/// A folder that is there as long as this is.
struct Folder(PathBuf);

impl Folder {
    /// The tokenizer as the model has it, whatever it was read from, for the harness to count tokens by.
    fn of_tokenizer(merged: &Merged) -> Result<Self> {
        let above = std::env::temp_dir();
        if above.to_str().is_none_or(|text| text.contains([',', '=', ' '])) {
            return Err(Error::file(
                above,
                "lm_eval takes no such name; set TMPDIR to a folder without `,`, `=` and blanks",
            ));
        }
        let folder = Self(above.join(format!("eleuther_eval-{:016x}", choose_seed(None))));
        fs::create_dir(&folder.0).map_err(Error::io("create", &folder.0))?;
        let config = merged.configs().0.to_string().into_bytes();
        for (name, bytes) in merged.tokenizer_files().files.iter().chain([(&"config.json".to_owned(), &config)]) {
            let path = folder.0.join(name);
            fs::write(&path, bytes).map_err(Error::io("write", &path))?;
        }
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The server, which ends when this does: should the program be killed, the server's standard input ends.
struct Server {
    child: Child,
    /// Its address, with the version of the interface.
    address: String,
}

impl Server {
    /// Starts it, and waits until the model is loaded.
    fn start(mut command: Command) -> Result<Self> {
        // Ctrl-C in a terminal is for the harness and this program.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let path = PathBuf::from(command.get_program());
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(Error::io("start", path))?;
        let mut server = Self { child, address: String::new() };
        let lines = server.child.stdout.take().map(|out| BufReader::new(out).lines());
        for line in lines.into_iter().flatten().map_while(Result::ok) {
            say!("{line}");
            if let Some(at) = line.find("http://") {
                line[at..].split([',', ' ']).next().unwrap_or_default().clone_into(&mut server.address);
                return Ok(server);
            }
        }
        Err(Error::setup(
            "the server of the model ended before it could answer, and says why above; where memory is missing, a smaller batch_size or \
             max_seq_length takes less",
        ))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the harness, shows what it says on the way, and returns that.
fn answered(mut harness: Command, server: &mut Server) -> Result<String> {
    let program = PathBuf::from(harness.get_program());
    let (reader, writer) = pipe().map_err(Error::io("open", "a pipe"))?;
    let heard = std::thread::spawn(move || shown(reader));
    let ended = signals::run(harness.stdout(writer));
    // The command holds an end of the pipe.
    drop(harness);
    let said = heard.join().unwrap_or_default();
    match ended.map_err(Error::io("start", program))? {
        (_, Some(signal)) => {
            let message = format!("{signal}: stopped; there are no results");
            Err(Error::Stopped(Exit { code: signal.exit_code(), message }))
        }
        (status, None) if !status.success() => Err(Error::setup(match server.child.try_wait() {
            Ok(Some(ended)) => format!(
                "the server of the model ended ({ended}) while lm_eval asked it; where memory is missing, a smaller batch_size or \
                 max_seq_length takes less"
            ),
            _ => format!(
                "lm_eval ended with {status}, and says why above; where a module is missing, `{INSTALL}` installs it"
            ),
        })),
        _ => Ok(said),
    }
}

fn shown(from: impl Read) -> String {
    let mut said = String::new();
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        say!("{line}");
        said += &line;
        said.push('\n');
    }
    said
}
