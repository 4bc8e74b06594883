use tune_config::recipe;

struct Lora;

impl Lora {
    /// Trains.
    #[recipe(crate = tune_config)]
    fn lora(&self) -> Result<(), String> {
        Ok(())
    }
}

fn main() {}
