#[path = "configs/train.rs"]
mod train;

/// Trains.
#[tune_config::recipe(configs = ["configs/own_keys.yaml"], crate = tune_config)]
fn train(cfg: train::TrainConfig) -> Result<(), String> {
    println!("{cfg:?}");
    Ok(())
}
