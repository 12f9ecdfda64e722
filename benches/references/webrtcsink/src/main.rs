//! Runs the pipeline of its arguments, with webrtcsink and its bandwidth estimator at hand.

use gstreamer::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    gstreamer::init()?;
    gstrswebrtc::plugin_register_static()?;
    gstrsrtp::plugin_register_static()?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    let pipeline = gstreamer::parse::launch(&words.join(" "))?;
    pipeline.set_state(gstreamer::State::Playing)?;
    for message in pipeline.bus().ok_or("a pipeline without a bus")?.iter_timed(None) {
        if let gstreamer::MessageView::Error(error) = message.view() {
            return Err(format!("{}: {:?}", error.error(), error.debug()).into());
        }
    }
    Ok(())
}
