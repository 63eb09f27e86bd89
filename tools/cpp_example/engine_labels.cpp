// Labels of a picture, with an engine of the head `labels` in OpenVINO.
//
// The graph contains all of DiffSeg (`python -m export MODEL --head labels`, or `diffseg engine labels`). Its inputs are a
// frame of the engine's own size, uint8 [1, H, W, 3] BGR or planes of float, and one threshold per iteration; its output
// is the labels.
#include <openvino/openvino.hpp>

#include "example.h"

namespace {

struct Engine {
    ov::InferRequest request;
    ov::Output<const ov::Node> frame;
    std::string description;  // of the engine, JSON
    size_t iterations;
};

Engine open(const std::string &path) {
    try {
        // float32 on every processor. Leave the hint out for bfloat16 on a processor with units for it.
        const auto exact = ov::hint::inference_precision(ov::element::f32);
        ov::Core core;
        const std::shared_ptr<ov::Model> model = core.read_model(path);
        ov::CompiledModel engine = core.compile_model(model, "CPU", exact);
        engine.output("labels");
        return {engine.create_infer_request(), engine.input("frame"),
                model->get_rt_info<std::string>({"framework", "diffseg"}), engine.input("thresholds").get_shape()[0]};
    } catch (const ov::Exception &error) {
        throw std::runtime_error(path + ": expected an engine of `python -m export MODEL --head labels`; " +
                                 error.what());
    }
}

void run(const example::Words &words) {
    const std::string &picture_path = words[2], &labels_path = words[3], &overlay_path = words[4];
    std::vector<float> values = example::thresholds(words[1]);
    example::check_outputs(picture_path, labels_path, overlay_path);
    const cv::Mat picture = example::read_picture(picture_path);
    Engine engine = open(words[0]);
    if (values.size() != engine.iterations)
        throw example::Usage("thresholds: expected " + std::to_string(engine.iterations) +
                             ", one per iteration, found " + words[1]);
    ov::PartialShape sides = engine.frame.get_partial_shape();
    if (!sides[0].compatible(1))
        throw std::runtime_error(words[0] + ": expected an engine that takes one frame at a time");

    sides[0] = 1;
    const ov::Shape shape = sides.to_shape();  // [1, H, W, 3], or [1, 3, H, W] of planes
    const bool planar = engine.frame.get_element_type() == ov::element::f32;
    const size_t height = shape[planar ? 2 : 1], width = shape[planar ? 3 : 2];
    cv::Mat frame = example::resize_frame(picture, cv::Size(static_cast<int>(width), static_cast<int>(height)));
    std::vector<float> planes = planar ? example::planes(frame, engine.description) : std::vector<float>();
    engine.request.set_tensor("frame", planar ? ov::Tensor(ov::element::f32, shape, planes.data())
                                              : ov::Tensor(ov::element::u8, shape, frame.data));
    engine.request.set_tensor("thresholds", ov::Tensor(ov::element::f32, {values.size()}, values.data()));
    engine.request.infer();

    ov::Tensor found = engine.request.get_tensor("labels");  // uint8 up to 256 anchors, else int32
    const cv::Mat labels(frame.size(), found.get_element_type() == ov::element::u8 ? CV_8U : CV_32S, found.data());
    std::cout << example::write_labels(picture, labels, labels_path, overlay_path) << " segments\n";
}

}  // namespace

int main(int count, char **words) {
    return example::run(count, words, "engine_labels ENGINE.onnx T,... PICTURE LABELS.png OVERLAY.png", 5, 5, run);
}
