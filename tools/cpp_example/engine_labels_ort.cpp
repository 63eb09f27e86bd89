// As engine_labels, with ONNX Runtime: engine_labels_ort ENGINE.onnx FRAME OUT.npy [T,...]
#include <iostream>

#include <onnxruntime_cxx_api.h>

#include "npy.h"

namespace {

std::vector<int64_t> input_shape(Ort::Session &session, size_t index) {
    return session.GetInputTypeInfo(index).GetTensorTypeAndShapeInfo().GetShape();
}

void run(int count, char **words) {
    const Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "diffseg");
    Ort::Session session(environment, words[1], Ort::SessionOptions());

    npy::Array frame = npy::read_frame(words[2]);
    const std::vector<int64_t> taken = input_shape(session, 0);
    const std::vector<int64_t> shape{1, static_cast<int64_t>(frame.shape[0]), static_cast<int64_t>(frame.shape[1]), 3};
    // A dynamic batch is -1.
    if (taken.size() != 4 || taken[1] != shape[1] || taken[2] != shape[2] || taken[0] > 1)
        throw std::runtime_error(std::string(words[2]) + ": the engine takes frames of " + std::to_string(taken.at(1)) + "x" +
                                 std::to_string(taken.at(2)) + "; resize the picture first");
    std::vector<float> thresholds = npy::numbers(count > 4 ? words[4] : "1.1,1.1,1.1");
    const std::vector<int64_t> iterations = input_shape(session, 1);
    if (iterations != std::vector<int64_t>{static_cast<int64_t>(thresholds.size())})
        throw std::runtime_error("expected " + std::to_string(iterations.at(0)) + " thresholds, one per iteration");

    const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    Ort::Value inputs[2]{
        Ort::Value::CreateTensor(memory, frame.bytes.data(), frame.bytes.size(), shape.data(), shape.size(),
                                 ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8),
        Ort::Value::CreateTensor<float>(memory, thresholds.data(), thresholds.size(), iterations.data(), iterations.size())};
    const char *entering[2]{"frame", "thresholds"}, *leaving[2]{"labels", "segments"};
    std::vector<Ort::Value> found = session.Run(Ort::RunOptions(), entering, inputs, 2, leaving, 2);

    const auto info = found[0].GetTensorTypeAndShapeInfo();
    npy::Array labels;
    labels.type = info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 ? "|u1" : "<i4";
    labels.shape = {frame.shape[0], frame.shape[1]};
    const char *bytes = static_cast<const char *>(found[0].GetTensorRawData());
    labels.bytes.assign(bytes, bytes + npy::count(labels.shape) * npy::item_size(labels.type));
    npy::write(words[3], labels);
    std::cout << found[1].GetTensorData<int32_t>()[0] << " proposals\n";
}

}  // namespace

int main(int count, char **words) {
    if (count < 4) {
        std::cerr << "usage: engine_labels_ort ENGINE.onnx FRAME.npy|FRAME.ppm OUT.npy [THRESHOLD,...]\n";
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
