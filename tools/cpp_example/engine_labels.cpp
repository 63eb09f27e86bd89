// Labels from a picture, with an engine of the head `labels` in OpenVINO: engine_labels ENGINE.onnx FRAME OUT.npy [T,...]
//
// The whole of DiffSeg is in the graph (`python -m export MODEL --head labels`): the program feeds it a frame, uint8
// [1, H, W, 3] BGR of the engine's own size, and one threshold per iteration, and reads labels.
#include <cstring>
#include <iostream>

#include <openvino/openvino.hpp>

#include "npy.h"

namespace {

void run(int count, char **words) {
    ov::Core core;
    const std::shared_ptr<ov::Model> model = core.read_model(words[1]);
    // Exact figures on every processor; leave this out for bfloat16 where the processor is fast at it.
    ov::CompiledModel engine = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32));
    ov::InferRequest request = engine.create_infer_request();

    const npy::Array frame = npy::read_frame(words[2]);
    const ov::Shape shape{1, frame.shape[0], frame.shape[1], 3};
    if (!engine.input("frame").get_partial_shape().compatible(ov::PartialShape(shape)))
        throw std::runtime_error(std::string(words[2]) + ": the engine takes frames " +
                                 engine.input("frame").get_partial_shape().to_string() + "; resize the picture first");
    ov::Tensor input(ov::element::u8, shape);
    std::memcpy(input.data(), frame.bytes.data(), frame.bytes.size());
    request.set_tensor("frame", input);

    const size_t iterations = engine.input("thresholds").get_shape()[0];
    const std::vector<float> values = npy::numbers(count > 4 ? words[4] : "1.1,1.1,1.1");
    if (values.size() != iterations)
        throw std::runtime_error("expected " + std::to_string(iterations) + " thresholds, one per iteration");
    ov::Tensor thresholds(ov::element::f32, {iterations});
    std::memcpy(thresholds.data(), values.data(), iterations * sizeof(float));
    request.set_tensor("thresholds", thresholds);

    request.infer();
    const ov::Tensor found = request.get_tensor("labels"), segments = request.get_tensor("segments");
    npy::Array labels;
    labels.type = found.get_element_type() == ov::element::u8 ? "|u1" : "<i4";
    labels.shape = {found.get_shape()[1], found.get_shape()[2]};
    const char *bytes = static_cast<const char *>(found.data());
    labels.bytes.assign(bytes, bytes + npy::count(labels.shape) * npy::item_size(labels.type));
    npy::write(words[3], labels);
    std::cout << segments.data<int32_t>()[0] << " proposals\n";
}

}  // namespace

int main(int count, char **words) {
    if (count < 4) {
        std::cerr << "usage: engine_labels ENGINE.onnx FRAME.npy|FRAME.ppm OUT.npy [THRESHOLD,...]\n";
        return 2;
    }
    try {
        run(count, words);
    } catch (const std::exception &error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
    return 0;
}
