// The same as engine_labels.cpp, with ONNX Runtime.
#include <onnxruntime_cxx_api.h>

#include "example.h"

namespace {

std::vector<int64_t> input_shape(const Ort::Session &session, size_t index) {
    return session.GetInputTypeInfo(index).GetTensorTypeAndShapeInfo().GetShape();
}

// The engine's description, JSON.
std::string description(const Ort::Session &session) {
    Ort::AllocatorWithDefaultOptions allocator;
    const auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated("diffseg", allocator);
    return text ? text.get() : "";
}

Ort::Session open(const Ort::Env &environment, const std::string &path) {
    const std::string expected = path + ": expected an engine of `python -m export MODEL --head labels`";
    try {
        Ort::Session session(environment, std::filesystem::path(path).c_str(), Ort::SessionOptions());
        if (session.GetInputCount() == 2 && input_shape(session, 0).size() == 4 && input_shape(session, 1).size() == 1)
            return session;
    } catch (const Ort::Exception &error) {
        throw std::runtime_error(expected + "; " + error.what());
    }
    throw std::runtime_error(expected + ", found another");
}

void run(const example::Words &words) {
    const std::string &picture_path = words[2], &labels_path = words[3], &overlay_path = words[4];
    std::vector<float> values = example::thresholds(words[1]);
    example::check_outputs(picture_path, labels_path, overlay_path);
    const cv::Mat picture = example::read_picture(picture_path);
    const Ort::Env environment(ORT_LOGGING_LEVEL_FATAL, "diffseg");
    Ort::Session session = open(environment, words[0]);
    const std::vector<int64_t> iterations = input_shape(session, 1);
    if (iterations[0] != static_cast<int64_t>(values.size()))
        throw example::Usage("thresholds: expected " + std::to_string(iterations[0]) + ", one per iteration, found " +
                             words[1]);
    std::vector<int64_t> shape = input_shape(session, 0);
    if (shape[0] > 1) throw std::runtime_error(words[0] + ": expected an engine that takes one frame at a time");
    shape[0] = 1;  // a dynamic batch is -1

    const auto type = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetElementType();
    const bool planar = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;  // [1, 3, H, W]; otherwise [1, H, W, 3]
    const int64_t height = shape[planar ? 2 : 1], width = shape[planar ? 3 : 2];
    cv::Mat frame = example::resize_frame(picture, cv::Size(static_cast<int>(width), static_cast<int>(height)));
    std::vector<float> planes = planar ? example::planes(frame, description(session)) : std::vector<float>();
    const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    Ort::Value inputs[2]{
        planar
            ? Ort::Value::CreateTensor<float>(memory, planes.data(), planes.size(), shape.data(), shape.size())
            : Ort::Value::CreateTensor<uint8_t>(memory, frame.data, frame.total() * 3, shape.data(), shape.size()),
        Ort::Value::CreateTensor<float>(memory, values.data(), values.size(), iterations.data(), iterations.size())};
    const char *entering[2]{"frame", "thresholds"}, *leaving[1]{"labels"};
    std::vector<Ort::Value> found = session.Run(Ort::RunOptions(), entering, inputs, 2, leaving, 1);

    // uint8 up to 256 anchors, else int32
    const bool bytes = found[0].GetTensorTypeAndShapeInfo().GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    const cv::Mat labels(frame.size(), bytes ? CV_8U : CV_32S, found[0].GetTensorMutableRawData());
    std::cout << example::write_labels(picture, labels, labels_path, overlay_path) << " segments\n";
}

}  // namespace

int main(int count, char **words) {
    return example::run(count, words, "engine_labels_ort ENGINE.onnx T,... PICTURE LABELS.png OVERLAY.png", 5, 5, run);
}
